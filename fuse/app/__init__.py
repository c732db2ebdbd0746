"""From a configuration to a run, and what a person sees of it."""
