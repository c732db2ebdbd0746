"""Models of open_clip: CLIP, SigLIP, CLIPA, CoCa and others, from a folder, the hub, or by the name of an architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional

from fuse.errors import FuseError
from fuse.models.base import EmbeddingModel
from fuse.types import Inputs

if TYPE_CHECKING:
    from PIL.Image import Image

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""The pieces of text within which open_clip's own tokenizer merges bytes."""


class OpenCLIP(EmbeddingModel):
    """A dual encoder of open_clip. `tokenizer` is open_clip's; `preprocess` turns a picture into a tensor [3 h w]."""

    def __init__(self, network: Any, tokenizer: Any, preprocess: Callable[[Image], Tensor]) -> None:
        self._tower = tower = getattr(network, "text", network)
        layer = tower.token_embedding if hasattr(tower, "token_embedding") else tower.transformer.get_input_embeddings()
        fast = fast_tokenizer(tokenizer)
        super().__init__(network, fast, layer, tokenizer.context_length)
        # open_clip's own tokenizer pads with 0, others with their pad token; some write padding over the closing token
        self.pad_id = int(fast.pad_token_id or 0)
        self.blank_id = fast.sep_token_id if getattr(tokenizer, "strip_sep_token", False) else self.pad_id
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
        """From a local folder, a hub repository (its id has a "/"), or an architecture's name such as ViT-B-32.

        `pretrained` is the tag or the checkpoint file of an architecture's weights; `options` go to `create_model`.

        Raises:
            FuseError: open_clip is not installed, there is no such model or tag, or its files cannot be read.
        """
        try:
            import open_clip
        except ImportError as error:
            raise FuseError(f"model_id={model_id}: models of this kind need open_clip; pip install open_clip_torch") from error
        name = _full_name(open_clip, model_id, pretrained)
        if pretrained and open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu"):
            options = {"force_quick_gelu": True, **options}  # these weights were trained with it
        try:
            network = open_clip.create_model(name, _checkpoint(pretrained), require_pretrained=True, **options)
            tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # config, network, hub, archive, weights: each fails in its own way
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise FuseError(f"model_id={model_id}: could not load it ({reason}); repair it or choose another") from error
        if getattr(tokenizer, "tokenizer_mode", ""):
            raise FuseError(f"model_id={model_id}: its tokenizer_mode={tokenizer.tokenizer_mode} is not offered; choose another model")
        transform = open_clip.transform
        preprocess = transform.image_transform_v2(transform.PreprocessCfg(**network.visual.preprocess_cfg), is_train=False)
        return cls(network.to(device, dtype), tokenizer, preprocess)

    def vector(self, inputs: Inputs) -> Float[Tensor, "b e"]:
        """Unit text vectors, padded as open_clip pads them: to the whole context, unless the tower is causal."""
        width = inputs.ids.shape[1] if self._causal else self.vocabulary.max_length
        ids, embeddings = self._padded(inputs, width)
        with self.reading(embeddings), self._narrowed(width):
            return functional.normalize(self.network.encode_text(ids).float(), dim=-1)

    @torch.no_grad()
    def embed_images(self, images: list[Image]) -> Float[Tensor, "b e"]:
        """Unit image vectors, one a picture."""
        pixels = torch.stack([self.preprocess(image) for image in images])
        features = self.network.encode_image(pixels.to(self.device, self.vocabulary.embedding.dtype))
        return functional.normalize(features.float(), dim=-1)

    @property
    def _causal(self) -> bool:
        """Whether what stands after the closing token, at which the tower pools, changes nothing."""
        tower = self._tower
        pool = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)
        return getattr(tower, "attn_mask", None) is not None and getattr(tower, "cls_emb", None) is None and pool in ("argmax", "eos")

    @contextmanager
    def _narrowed(self, width: int) -> Iterator[None]:
        """Within this context the tower has room for so many tokens alone."""
        tower = self._tower
        if width == self.vocabulary.max_length:
            yield
            return
        mask, places = tower.attn_mask, tower.positional_embedding
        tower.attn_mask = mask[:width, :width]
        tower.positional_embedding = torch.nn.Parameter(places[:width], requires_grad=False)
        try:
            yield
        finally:
            tower.attn_mask, tower.positional_embedding = mask, places

    def _padded(self, inputs: Inputs, width: int) -> tuple[Int[Tensor, "b c"], Float[Tensor, "b c d"] | None]:
        """Ids, and embeddings if there are any, of so many tokens."""
        real = inputs.mask & (inputs.ids != self.blank_id) if self.blank_id != self.pad_id else inputs.mask
        missing = width - inputs.ids.shape[1]
        ids = functional.pad(torch.where(real, inputs.ids, self.pad_id), (0, missing), value=self.pad_id)
        if inputs.embeddings is None:
            return ids, None
        filler = self.vocabulary.embedding[self.pad_id]
        kept = torch.where(real[..., None], inputs.embeddings, filler)
        return ids, torch.cat([kept, filler.expand(len(kept), missing, -1)], dim=1)


def fast_tokenizer(tokenizer: Any) -> Any:
    """The fast tokenizer that gives the ids of one of open_clip's, cleaning of the text included.

    Cleaning composes characters, straightens quotes and joins white space. Garbled text and HTML entities, which
    open_clip would mend too, are read as they stand.
    """
    from open_clip.tokenizer import SimpleTokenizer

    if isinstance(tokenizer, SimpleTokenizer):
        return _fast_bpe(tokenizer)
    inner = tokenizer.tokenizer
    if getattr(inner, "is_fast", False):
        own = inner.backend_tokenizer.normalizer
        inner.backend_tokenizer.normalizer = normalizers.Sequence([*_cleaning(tokenizer), *([own] if own else [])])
    return inner


def _fast_bpe(tokenizer: Any) -> Any:
    """open_clip's `SimpleTokenizer` as a fast one, by its own table and merges."""
    from transformers import PreTrainedTokenizerFast

    special = [tokenizer.decoder[i] for i in tokenizer.all_special_ids]
    start, end = special[:2]
    fast = Tokenizer(models.BPE(dict(tokenizer.encoder), list(tokenizer.bpe_ranks), end_of_word_suffix="</w>"))
    fast.normalizer = normalizers.Sequence(_cleaning(tokenizer))
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    fast.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    fast.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(Regex(r"</w>\z"), ""), decoders.Replace("</w>", " ")])
    ids = [(token, tokenizer.encoder[token]) for token in (start, end)]
    fast.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=fast, bos_token=start, eos_token=end, additional_special_tokens=special[2:])


def _cleaning(tokenizer: Any) -> list[Any]:
    """The steps of the tokenizer's own cleaning of a text."""
    from open_clip.tokenizer import get_clean_fn

    kinds = {get_clean_fn(name): name for name in ("whitespace", "lower", "canonicalize")}
    kind = kinds[getattr(tokenizer, "clean_fn", get_clean_fn("canonicalize"))]
    quotes = [normalizers.Replace(Regex("[\u02bc\u2018-\u201b]"), "'"), normalizers.Replace(Regex("[\u201c-\u201f]"), '"')]
    steps = [normalizers.NFC(), *quotes]
    if kind == "canonicalize":
        steps += [normalizers.Replace("_", " "), normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), "")]
    if kind != "whitespace":
        steps.append(normalizers.Lowercase())
    return [*steps, normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]


def _full_name(library: Any, model_id: str, pretrained: str | None) -> str:
    """What open_clip calls the model: a folder, a hub repository, or an architecture whose weights are known."""
    path, hub_id = Path(model_id).expanduser(), model_id.removeprefix("hf-hub:")
    if path.is_dir() or "/" in model_id:
        if pretrained:
            raise FuseError(f"pretrained={pretrained}: model_id={model_id} has weights of its own; give pretrained=null")
        if path.is_dir():
            return f"local-dir:{path}"
        if path.is_absolute() or hub_id.startswith(".") or hub_id.count("/") > 1:
            raise FuseError(f"model_id={model_id}: no such folder; give a model folder, a hub id, or an architecture such as ViT-B-32")
        return f"hf-hub:{hub_id}"
    if model_id not in library.list_models():
        names = {name.lower(): name for name in library.list_models()}
        near = get_close_matches(model_id.lower(), names, n=1)
        hint = f"did you mean {names[near[0]]}? " if near else ""
        raise FuseError(f"model_id={model_id}: {hint}expected a model folder, a hub id, or an architecture of open_clip such as ViT-B-32")
    tags = library.list_pretrained_tags_by_model(model_id)
    choices = f"one of {', '.join(tags)}, or a checkpoint file" if tags else "a checkpoint file"
    if not pretrained:
        raise FuseError(f"pretrained=null: {model_id} is an architecture without weights; give pretrained={choices}")
    if not library.get_pretrained_cfg(model_id, pretrained) and not Path(pretrained).expanduser().is_file():
        near = get_close_matches(pretrained, tags, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise FuseError(f"pretrained={pretrained}: {hint}model_id={model_id} has no such weights; give {choices}")
    return model_id


def _checkpoint(pretrained: str | None) -> str | None:
    """The tag, or the path of the file."""
    path = Path(pretrained).expanduser() if pretrained else None
    return str(path) if path is not None and path.is_file() else pretrained
