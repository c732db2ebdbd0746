"""Kinds of network, one file each."""

from fuse.images import open_image
from fuse.models.base import EmbeddingModel, Model, VectorModel
from fuse.models.captioner import Captioner
from fuse.models.causal_lm import CausalLM
from fuse.models.classifier import Classifier
from fuse.models.clip import CLIP
from fuse.models.diffusion import Diffusion
from fuse.models.image_text import ImageText
from fuse.models.masked_lm import MaskedLM
from fuse.models.open_clip import OpenCLIP
from fuse.models.sentence import SentenceEncoder

__all__ = [
    "CLIP",
    "Captioner",
    "CausalLM",
    "Classifier",
    "Diffusion",
    "EmbeddingModel",
    "ImageText",
    "MaskedLM",
    "Model",
    "OpenCLIP",
    "SentenceEncoder",
    "VectorModel",
    "open_image",
]
