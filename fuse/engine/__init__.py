"""Evaluation of token sequences with one model, through one door."""

from fuse.engine.engine import Engine, EngineGroup

__all__ = ["Engine", "EngineGroup"]
