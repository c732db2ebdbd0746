"""Kinds of network, one file each."""

from fuse.models.base import EmbeddingModel, Model
from fuse.models.causal_lm import CausalLM
from fuse.models.clip import CLIP, open_image
from fuse.models.sentence import SentenceEncoder

__all__ = ["CLIP", "CausalLM", "EmbeddingModel", "Model", "SentenceEncoder", "open_image"]
