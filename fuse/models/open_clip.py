"""Models of open_clip: CLIP, SigLIP, CLIPA, CoCa and others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from typing_extensions import Doc

from fuse.errors import FuseError
from fuse.models.base import EmbeddingModel
from fuse.models.loading import loading, preparing
from fuse.models.open_clip_loading import create, full_name
from fuse.models.open_clip_tokenizer import fast_tokenizer
from fuse.nn.batch import Inputs

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Weights:
    """Which weights an architecture is given."""

    pretrained: Annotated[
        str | None,
        Doc(
            "weights of an architecture: a tag of open_clip's or a file; "
            "null for hub ids and folders"
        ),
    ] = None


class OpenCLIP(EmbeddingModel):
    """A dual encoder of open_clip.

    Args:
        tokenizer: open_clip's own.
        preprocess: turns an image into a tensor [3 h w].
    """

    goal = "image"
    load_options = Weights

    def __init__(self, network: Any, tokenizer: Any, preprocess: Callable[[Image], Tensor]) -> None:
        fast = fast_tokenizer(tokenizer)
        super().__init__(network, fast, _token_layer(network), tokenizer.context_length)
        self._tower = getattr(self.network, "text", self.network)
        # open_clip's own tokenizer pads with 0, others with their pad token
        self.pad_id = int(fast.pad_token_id or 0)
        # Some write padding over the closing token
        strips = getattr(tokenizer, "strip_sep_token", False)
        self.blank_id = fast.sep_token_id if strips else self.pad_id
        self.preprocess = preprocess

    @classmethod
    def load(
        cls,
        model_id: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        pretrained: str | None = None,
        **options: Any,
    ) -> OpenCLIP:
        """Load a model from a folder or a hub repository, or by the name of an architecture.

        Args:
            model_id: a local folder; a hub id, which has a "/"; or an architecture such as
                ViT-B-32.
            pretrained: the tag or the checkpoint file of an architecture's weights.
            options: go to `create_model`.

        Raises:
            FuseError: open_clip is not installed, there is no such model or tag, or its files
                cannot be read.
        """
        try:
            import open_clip
        except ImportError as error:
            raise FuseError(
                f"model_id={model_id}: models of this kind need open_clip; "
                "pip install open_clip_torch"
            ) from error
        name = full_name(open_clip, model_id, pretrained)
        if pretrained and open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu"):
            options = {"force_quick_gelu": True, **options}  # these weights were trained with it
        with torch.inference_mode(False):
            network, tokenizer = create(open_clip, model_id, name, pretrained, options)
        transform = open_clip.transform
        with loading(model_id):
            config = transform.PreprocessCfg(**network.visual.preprocess_cfg)
            preprocess = transform.image_transform_v2(config, is_train=False)
            return cls(network.to(device, dtype), tokenizer, preprocess)

    def vector(self, inputs: Inputs) -> Float[Tensor, "b e"]:
        """Return unit text vectors.

        Texts are padded to the whole context, as open_clip pads them, unless the tower is causal.
        """
        width = inputs.ids.shape[1] if self._is_causal else self.vocabulary.max_length
        ids, embeddings = self._padded(inputs, width)
        with self.reading(embeddings), self._narrowed(width):
            return functional.normalize(self.network.encode_text(ids).float(), dim=-1)

    @torch.no_grad()
    def embed_images(self, images: list[Image]) -> Float[Tensor, "b e"]:
        """Return unit image vectors, one an image."""
        with preparing("vector", "open_clip_config.json"):
            pixels = torch.stack([self.preprocess(image) for image in images])
            pixels = pixels.to(self.device, self.vocabulary.embedding.dtype)
            vectors = self.network.encode_image(pixels)
        return functional.normalize(vectors.float(), dim=-1)

    @property
    def _is_causal(self) -> bool:
        """Whether tokens after the closing one, at which the tower pools, change nothing."""
        tower = self._tower
        pool = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)
        masked = getattr(tower, "attn_mask", None) is not None
        return masked and getattr(tower, "cls_emb", None) is None and pool in ("argmax", "eos")

    @contextmanager
    def _narrowed(self, width: int) -> Iterator[None]:
        """Let the tower take texts of exactly this many tokens, within a context."""
        tower = self._tower
        if width == self.vocabulary.max_length:
            yield
            return
        mask, positions = tower.attn_mask, tower.positional_embedding
        tower.attn_mask = mask[:width, :width]
        tower.positional_embedding = torch.nn.Parameter(positions[:width], requires_grad=False)
        try:
            yield
        finally:
            tower.attn_mask, tower.positional_embedding = mask, positions

    def _padded(
        self, inputs: Inputs, width: int
    ) -> tuple[Int[Tensor, "b c"], Float[Tensor, "b c d"] | None]:
        """Return ids, and embeddings if there are any, padded to this width."""
        real = inputs.mask
        if self.blank_id != self.pad_id:
            real = real & (inputs.ids != self.blank_id)
        missing = width - inputs.ids.shape[1]
        ids = torch.where(real, inputs.ids, self.pad_id)
        ids = functional.pad(ids, (0, missing), value=self.pad_id)
        if inputs.embeddings is None:
            return ids, None
        filler = self.vocabulary.embedding[self.pad_id]
        kept = torch.where(real[..., None], inputs.embeddings, filler)
        return ids, torch.cat([kept, filler.expand(len(kept), missing, -1)], dim=1)


def _token_layer(network: Any) -> Any:
    """Return the embedding layer of a network's text tower."""
    tower = getattr(network, "text", network)
    if hasattr(tower, "token_embedding"):
        return tower.token_embedding
    return tower.transformer.get_input_embeddings()
