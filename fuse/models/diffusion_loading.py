"""Load the parts of a Stable Diffusion pipeline that a text is scored with, and no others."""

from __future__ import annotations

from typing import Any

import torch

from fuse.errors import FuseError
from fuse.models.build_limits import StoredSize
from fuse.models.loading import load_network, load_pretrained, loading, reaching, source_of
from fuse.models.model_files import check_config, read_object, stored_size

INDEX, SCHEDULER = "model_index.json", "scheduler_config.json"
PIPELINE = "StableDiffusionPipeline"
NETWORKS = {
    "text_encoder": "CLIPTextModel",
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
}
"""The folders of networks that are read, and the class that each has to be of."""
SUPPORTED = (
    f"expected a {PIPELINE}, which has one CLIP as its text encoder (Stable Diffusion 1 and 2)"
)
INSTALL = (
    "kind=diffusion: needs the package diffusers; pip install 'fuse-prompt[diffusion]', "
    "or choose another kind"
)


def library() -> Any:
    """Return the package diffusers.

    Raises:
        FuseError: it is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise FuseError(INSTALL) from error
    return diffusers


def load_pipeline(model_id: str, dtype: torch.dtype, **options: Any) -> Any:
    """Return the pipeline of a hub id or a local folder in the layout of diffusers, on the CPU.

    Its VAE, which is run once for a picture, is in float32: half types overflow in some.

    Raises:
        FuseError: it is another pipeline, cannot be read, or lacks weights.
    """
    diffusers = library()
    for name in ("device_map", "attn_implementation", "quantization"):
        if options.pop(name, None) is not None:
            raise FuseError(f"{name}: diffusion models have none here; leave it out")
    source, where = source_of(model_id, options)
    with loading(model_id), reaching(source, where):
        _check_index(source, where)
        return _assembled(diffusers, source, dtype, {**options, **where})


def _assembled(diffusers: Any, source: str, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    """Load all parts, and make the pipeline of them."""
    from transformers import CLIPTextModel, CLIPTokenizer

    def network(kind: Any, folder: str, dtype: torch.dtype) -> Any:
        # Older versions of diffusers do not know the other name
        name = "dtype" if kind is CLIPTextModel else "torch_dtype"
        own = {**options, "subfolder": folder, name: dtype}
        return load_network(kind, source, "cpu", may_lack="", **own)

    scheduler = read_object(source, SCHEDULER, **{**options, "subfolder": "scheduler"})
    check_config(source, SCHEDULER, scheduler)
    if "beta_schedule" not in scheduler:
        raise FuseError(
            f"model_id={source}: its {SCHEDULER} has no beta_schedule; "
            "choose a model that was trained to denoise by one"
        )
    return diffusers.StableDiffusionPipeline(
        text_encoder=network(CLIPTextModel, "text_encoder", dtype),
        unet=network(diffusers.UNet2DConditionModel, "unet", dtype),
        vae=network(diffusers.AutoencoderKL, "vae", torch.float32),
        tokenizer=load_pretrained(CLIPTokenizer, source, **{**options, "subfolder": "tokenizer"}),
        scheduler=diffusers.DDPMScheduler.from_config(scheduler, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _check_index(source: str, where: dict[str, Any]) -> None:
    """Check that a folder or a repository holds the pipeline that is supported.

    Raises:
        FuseError: it holds something else.
    """
    index = read_object(source, INDEX, **where)
    if not index:
        raise FuseError(f"model_id={source}: it has no {INDEX}; {SUPPORTED}, in diffusers' layout")
    if index.get("_class_name") != PIPELINE:
        name = str(index.get("_class_name"))[:60]
        raise FuseError(f"model_id={source}: its {INDEX} says _class_name={name}; {SUPPORTED}")
    for folder, kind in NETWORKS.items():
        entry = index.get(folder)
        if not isinstance(entry, list) or entry[-1:] != [kind]:
            raise FuseError(
                f"model_id={source}: its {INDEX} says {folder}={str(entry)[:60]}, expected {kind}; "
                "choose another model"
            )


def stored_networks(source: str, **where: Any) -> StoredSize:
    """Return what the headers of the weights of all parts tell."""
    tensors = numbers = 0
    for folder in NETWORKS:
        own = {**where, "subfolder": folder}
        stored = stored_size(source, read_object(source, "config.json", **own), **own)
        tensors, numbers = tensors + stored.num_tensors, numbers + stored.num_numbers
    return StoredSize(tensors, numbers)
