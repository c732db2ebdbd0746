"""Diffusion models: pipelines of Stable Diffusion, of each kind of what the U-Net says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fuse
from checkpoints.compare import compare_longest, compare_search, compare_term, fast_ways
from checkpoints.dual import PICTURE
from checkpoints.family import Family, Findings, NoReference
from checkpoints.reference import Reference

ROLE = "diffusion model"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KINDS: dict[str, dict[str, Any]] = {
    "epsilon": {},
    "velocity": {"scheduler": "DDIMScheduler", "prediction_type": "v_prediction"},
    "sample": {"scheduler": "EulerDiscreteScheduler", "prediction_type": "sample"},
    "masked texts": {"masked": True},
}
TOKENIZER = Path(fuse.__file__).parent / "demo/clip"
EDGE, LATENT_EDGE = 16, 8
"""The edges of pictures and of their latents."""
LEVELS = (250, 750)
AROUND = {"alone": {}, "between": {"prefix": "She looks:", "suffix": "in the rain."}}
NoisyVersion = tuple[Tensor, Tensor, Tensor]
"""Latents with noise, its level, and what the U-Net should say."""


def families() -> Iterator[Family]:
    """Yield Stable Diffusion with each kind of target, and with a text encoder that has a mask."""
    for name, options in KINDS.items():
        build_it = partial(build, options)
        yield Family(f"stable diffusion, {name}", ROLE, build_it, check, "clip")


def build(options: dict[str, Any], folder: Path) -> None:
    """Write a tiny pipeline with random weights."""
    pipeline(**options).save_pretrained(folder)


def pipeline(scheduler: str = "PNDMScheduler", *, masked: bool = False, **options: Any) -> Any:
    """Make a tiny pipeline with random weights, and the tokenizer of the demo CLIP.

    Args:
        masked: whether the text encoder is told what is padding.
        options: of the scheduler.
    """
    import diffusers
    from transformers import CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    levels = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    unet = diffusers.UNet2DConditionModel(
        sample_size=LATENT_EDGE,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=levels[0],
        up_block_types=levels[1],
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    )
    # Larger, so that texts matter
    torch.nn.init.normal_(unet.conv_out.weight, std=0.5)
    for name, weight in unet.named_parameters():
        if "attn2.to_" in name and name.endswith("weight"):
            torch.nn.init.normal_(weight, std=0.3)
    return diffusers.StableDiffusionPipeline(
        text_encoder=_text_encoder(tokenizer, masked),
        tokenizer=tokenizer,
        unet=unet.eval(),
        vae=vae.eval(),
        scheduler=getattr(diffusers, scheduler)(**BETAS, **options),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _text_encoder(tokenizer: Any, masked: bool) -> Any:
    """Make the text encoder of a pipeline."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.use_attention_mask = masked
    encoder = CLIPTextModel(config).eval()
    torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)
    return encoder


@torch.no_grad()
def noisy_versions(
    pipe: Any, picture: Any, levels: Sequence[int], seed: int, samples: int = 1
) -> list[NoisyVersion]:
    """Return versions of a picture, by a pipeline's own parts and the definition of its noise."""
    pixels = pipe.image_processor.preprocess(picture, EDGE, EDGE, resize_mode="crop")
    clean = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    count, found = len(levels) * samples, []
    noise = torch.randn((count, *clean.shape[1:]), generator=torch.Generator().manual_seed(seed))
    for i in range(count):
        level, eps = torch.tensor([levels[i // samples]]), noise[i : i + 1]
        share = pipe.scheduler.alphas_cumprod[level]
        target = {
            "epsilon": eps,
            "v_prediction": share.sqrt() * eps - (1 - share).sqrt() * clean,
            "sample": clean,
        }[pipe.scheduler.config.prediction_type]
        found.append((share.sqrt() * clean + (1 - share).sqrt() * eps, level, target))
    return found


def denoising_error(pipe: Any, states: Tensor, versions: Sequence[NoisyVersion]) -> Tensor:
    """Return the mean squared error of a pipeline's U-Net, given the states of one text."""
    errors = []
    for noisy, level, target in versions:
        said = pipe.unet(noisy, level, encoder_hidden_states=states).sample
        errors.append((said - target).square().mean())
    return torch.stack(errors).mean()


class DiffusionReference(Reference):
    """The denoising error of a picture, by the parts of the pipeline as diffusers loads it."""

    def __init__(self, folder: Path) -> None:
        from diffusers import StableDiffusionPipeline

        self.pipe = StableDiffusionPipeline.from_pretrained(folder)
        super().__init__(self.pipe.text_encoder.eval(), self.pipe.tokenizer)
        self.versions = noisy_versions(self.pipe, PICTURE, LEVELS, seed=0)

    def loss(
        self, term: fuse.Term, prompt: str, row: Any, embeddings: Tensor | None = None
    ) -> Tensor:
        """Return the mean squared error given a text; or given other embeddings than its own."""

        def read(_: Any, __: Any, out: Tensor) -> Tensor | None:
            if embeddings is None:
                return None
            return torch.cat([embeddings[None], out[:, len(embeddings) :]], 1)

        with self.layer.register_forward_hook(read):
            states, _ = self.pipe.encode_prompt(term.template.render(prompt)[0], "cpu", 1, False)
        return denoising_error(self.pipe, states, self.versions)


def check(folder: Path, findings: Findings) -> None:
    """Compare losses, gradients and a search with those of the pipeline's own parts."""
    try:
        reference = DiffusionReference(folder)
    except Exception as error:
        raise NoReference(f"{type(error).__name__}: {error}") from error
    model = fuse.Diffusion.load(str(folder))
    findings.fast_ways = fast_ways(model)
    loss = fuse.DenoisingError(model.noisy_picture(PICTURE, timesteps=len(LEVELS)))
    for name, around in AROUND.items():
        compare_term(reference, model, loss, around, findings, name)
    compare_longest(reference, model, loss, findings)
    method = fuse.GCG(steps=1, search_width=6, top_k=16, prompt_length=4)
    compare_search(reference, fuse.Term(model, loss), method, findings, "gcg")
