"""CLIP models of Hugging Face: a text tower and a vision tower with one embedding space."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from fuse.errors import FuseError
from fuse.models.base import EmbeddingModel, load_network, load_pretrained
from fuse.types import Inputs

if TYPE_CHECKING:
    from PIL.Image import Image


class CLIP(EmbeddingModel):
    """A CLIP-type dual encoder (CLIP, and others with the same `get_text_features` and `get_image_features`)."""

    def __init__(self, network: Any, tokenizer: Any, image_processor: Any) -> None:
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
        with self.reading(inputs):
            out = self.network.get_text_features(input_ids=inputs.ids, attention_mask=inputs.mask.long())
        return normalize(out.pooler_output.float(), dim=-1)

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
