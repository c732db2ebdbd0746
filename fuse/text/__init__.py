"""Text and tokens: vocabularies, the fixed text around a prompt, and what a prompt may hold."""
