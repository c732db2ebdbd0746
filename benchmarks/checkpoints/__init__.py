"""Tiny checkpoints, with random weights, of every family that transformers knows: a file a role."""
