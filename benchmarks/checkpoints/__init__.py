"""Tiny checkpoints of every family that transformers knows, one file a role, with random weights."""
