"""CLIP models of Hugging Face: a text tower and a vision tower with one embedding space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from fuse.errors import FuseError
from fuse.models.base import EmbeddingModel, load_network, load_pretrained
from fuse.types import Inputs, Trunk

if TYPE_CHECKING:
    from PIL.Image import Image


class CLIP(EmbeddingModel):
    """A CLIP-type dual encoder (CLIP, and others with the same `get_text_features` and `get_image_features`).

    Its text tower is causal, so that it goes on from a `Trunk`.
    """

    branches = True

    def __init__(self, network: Any, tokenizer: Any, image_processor: Any) -> None:
        from fuse.models.attention import BRANCHING

        text = network.text_model
        for number, layer in enumerate(text.encoder.layers):
            layer.self_attn.layer_idx = number
        text.config._attn_implementation = BRANCHING
        length = network.config.text_config.max_position_embeddings
        super().__init__(network, tokenizer, network.text_model.get_input_embeddings(), length)
        self.image_processor = image_processor

    @classmethod
    def load(cls, model_id: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", **options: Any) -> CLIP:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        return cls(
            load_network(CLIPModel, model_id, dtype=dtype, **options).to(device),
            load_pretrained(AutoTokenizer, model_id),
            load_pretrained(AutoImageProcessor, model_id),
        )

    def vector(self, inputs: Inputs) -> Float[Tensor, "b e"]:
        """Unit text vectors, pooled where the network itself pools (at the end token)."""
        from fuse.models.attention import branch_cache

        branch = inputs.branch
        cache = None if branch is None else branch_cache(branch, torch.arange(len(inputs.ids), device=self.device))
        return normalize(self._run(inputs, cache).float(), dim=-1)

    @torch.no_grad()
    def read(self, inputs: Inputs, columns: Sequence[int]) -> Trunk:
        from fuse.models.attention import whole_cache

        cache = whole_cache(inputs.branch, torch.arange(len(inputs.ids), device=self.device))
        self._run(inputs, cache)
        return Trunk([(layer.keys, layer.values) for layer in cache.layers], columns)

    def _run(self, inputs: Inputs, cache: Any) -> Float[Tensor, "b e"]:
        """What the network pools; keys and values are added to the cache, if there is one."""
        start = 0 if inputs.branch is None else inputs.branch.length
        ids, embeddings = inputs.ids[:, start:], None if inputs.embeddings is None else inputs.embeddings[:, start:]
        places = torch.arange(inputs.ids.shape[1], device=ids.device)
        # [b 1 q k]: each real token sees itself and those before it
        seen = (places <= places[start:, None]) & inputs.mask[:, None, None]
        with self.reading(embeddings):
            out = self.network.get_text_features(
                input_ids=ids, attention_mask=seen, position_ids=places[None, start:], branching=cache, updating=cache
            )
        return out.pooler_output

    @torch.no_grad()
    def embed_images(self, images: list[Image]) -> Float[Tensor, "b e"]:
        """Unit image vectors, one a picture."""
        pixels = self.image_processor(images=images, return_tensors="pt")["pixel_values"]
        out = self.network.get_image_features(pixel_values=pixels.to(self.device, self.network.dtype))
        return normalize(out.pooler_output.float(), dim=-1)


def open_image(path: str | Path, key: str = "image") -> Image:
    """A picture file in RGB, turned the right way up, transparent parts on white.

    Raises:
        FuseError: there is no such file, or it is no picture.
    """
    from PIL import Image, ImageOps

    if not Path(path).is_file():
        raise FuseError(f"{key}={path}: no such file; give the path of a picture, such as images/house.png")
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FuseError(f"{key}={path}: not a picture that can be read ({error}); give a PNG, JPEG or WebP file") from error
