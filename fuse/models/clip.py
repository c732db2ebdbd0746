"""CLIP models of Hugging Face: a text tower and a vision tower with one embedding space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from fuse.errors import FuseError
from fuse.models.base import EmbeddingModel, load_network, load_pretrained
from fuse.models.layers import LastFeedForward
from fuse.types import Inputs, Trunk

if TYPE_CHECKING:
    from PIL.Image import Image


class CLIP(EmbeddingModel):
    """A CLIP-type dual encoder (CLIP, and others with the same `get_text_features` and `get_image_features`).

    Its text tower is causal, so that it goes on from a `Trunk`.
    """

    branches = True
    packs = True

    def __init__(self, network: Any, tokenizer: Any, image_processor: Any) -> None:
        from fuse.models.attention import BRANCHING

        text = network.text_model
        for number, layer in enumerate(text.encoder.layers):
            layer.self_attn.layer_idx = number
        text.config._attn_implementation = BRANCHING
        length = network.config.text_config.max_position_embeddings
        super().__init__(network, tokenizer, network.text_model.get_input_embeddings(), length)
        self.image_processor = image_processor
        some = torch.arange(4, device=self.device)[None]
        self._last = LastFeedForward(text, len(text.encoder.layers), lambda: text(input_ids=some).last_hidden_state[:, -1])

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
        from fuse.models.attention import branch_cache, leftmost

        if inputs.branch is None:
            return normalize(self._run(inputs.ids, self._causal(inputs), inputs.embeddings).float(), dim=-1)
        own = inputs.mask & (inputs.branch.known < 0)
        places, real = leftmost(own)
        embeddings = None if inputs.embeddings is None else inputs.embeddings[torch.arange(len(own), device=own.device)[:, None], places]
        cache = branch_cache(inputs.branch, own)
        return normalize(self._run(inputs.ids.gather(1, places), None, embeddings, places, cache, real).float(), dim=-1)

    @torch.no_grad()
    def read(self, inputs: Inputs, columns: Sequence[int]) -> Trunk:
        from fuse.models.attention import whole_cache

        start = inputs.branch.length if inputs.branch else 0
        cache = whole_cache(inputs.branch)
        places = torch.arange(start, inputs.ids.shape[1], device=self.device)[None]
        self._run(inputs.ids[:, start:], self._causal(inputs)[..., start:, :], None, places, cache)
        return Trunk([(layer.keys, layer.values) for layer in cache.layers], columns)

    def _causal(self, inputs: Inputs) -> Bool[Tensor, "b 1 t t"]:
        """Each real token sees itself and those before it."""
        places = torch.arange(inputs.ids.shape[1], device=inputs.ids.device)
        return (places <= places[:, None]) & inputs.mask[:, None, None]

    def _run(
        self,
        ids: Int[Tensor, "b t"],
        seen: Bool[Tensor, "b 1 t k"] | None,
        embeddings: Float[Tensor, "b t d"] | None = None,
        places: Int[Tensor, "#b t"] | None = None,
        cache: Any = None,
        real: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b e"]:
        """What the network pools; keys and values are added to the cache, if there is one, which may say what is seen.

        With `real` the layers read these tokens alone, of all rows one after another.
        """
        text = self.network.text_model
        seen = ids.new_ones(1, 1, 1, 1, dtype=torch.bool) if seen is None else seen
        # The network pools at its end token, or at the highest id
        pooled = (ids == text.eos_token_id) | (ids == ids.amax(1, keepdim=True))
        pooled = pooled if real is None else pooled[real][None]
        with self.reading(embeddings), _packed(text, real), self._last.only(pooled):
            out = self.network.get_text_features(input_ids=ids, attention_mask=seen, position_ids=places, branching=cache, updating=cache)
        return out.pooler_output

    @torch.no_grad()
    def embed_images(self, images: list[Image]) -> Float[Tensor, "b e"]:
        """Unit image vectors, one a picture."""
        pixels = self.image_processor(images=images, return_tensors="pt")["pixel_values"]
        out = self.network.get_image_features(pixel_values=pixels.to(self.device, self.network.dtype))
        return normalize(out.pooler_output.float(), dim=-1)


@contextmanager
def _packed(text: Any, real: Bool[Tensor, "b t"] | None) -> Iterator[None]:
    """Within this context the layers of a text tower read the real tokens as one row; it pools its rows again as they are."""
    if real is None:
        yield
        return

    def spread(states: Float[Tensor, "1 n d"]) -> Float[Tensor, "b t d"]:
        return states.new_zeros(*real.shape, states.shape[-1]).index_put((real,), states[0])

    gather = text.embeddings.register_forward_hook(lambda _, __, out: out[real][None])
    with gather, text.final_layer_norm.register_forward_hook(lambda _, __, out: spread(out)):
        yield


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
