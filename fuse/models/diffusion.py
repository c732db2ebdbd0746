"""Diffusion models that draw a picture of a text: how well the text helps to denoise a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fuse.errors import FuseError
from fuse.models.base import Model, context_length
from fuse.models.diffusion_loading import SUPPORTED, library, load_pipeline
from fuse.models.loading import loading, preparing
from fuse.models.reuse_trial import MAX_COARSE_ERROR, MAX_ERROR, is_coarse, relative_error
from fuse.models.text_form import TextForm
from fuse.models.vector_proof import prove_gradient
from fuse.nn.batch import Inputs, pad
from fuse.text.template import Template

if TYPE_CHECKING:
    from PIL.Image import Image

TRIALS = ("a", "Two dogs play in the snow, fast!", "1 a")
"""Texts on which a new model is compared with its pipeline."""


@dataclass(frozen=True)
class NoisyPicture:
    """Latents of a picture, with noise of several levels.

    Args:
        latents: what the U-Net reads.
        timesteps: the noise level of each.
        targets: what it should say of each: the noise, the velocity or the picture itself.
    """

    latents: Float[Tensor, "k c h w"]
    timesteps: Int[Tensor, " k"]
    targets: Float[Tensor, "k c h w"]


class Networks(torch.nn.Module):
    """The networks of a pipeline, as one."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.text_encoder, self.unet = pipeline.text_encoder, pipeline.unet
        self.vae = pipeline.vae


class Diffusion(Model):
    """Stable Diffusion: a CLIP's text encoder, and a U-Net that denoises latents given its states.

    Args:
        pipeline: a StableDiffusionPipeline of diffusers.

    Raises:
        FuseError: it is another pipeline, or reads texts or adds noise in a way not known here.
    """

    goal = "denoising"

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, pipeline: Any) -> None:
        diffusers = library()
        if not isinstance(pipeline, diffusers.StableDiffusionPipeline):
            raise FuseError(f"network={type(pipeline).__name__}: {SUPPORTED}")
        encoder, tokenizer = pipeline.text_encoder, pipeline.tokenizer
        length = context_length(encoder.config, tokenizer)
        super().__init__(Networks(pipeline), tokenizer, encoder.get_input_embeddings(), length)
        masked = bool(getattr(encoder.config, "use_attention_mask", False))
        self._form = TextForm(length, tokenizer.pad_token_id, masked=masked)
        self._scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)
        self._processor, self._scale = pipeline.image_processor, pipeline.vae_scale_factor
        self._check(pipeline)
        prove_gradient(self, lambda inputs: self.text_states(inputs).flatten(1))

    @classmethod
    def load(
        cls,
        model_id: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> Diffusion:
        """Load a model from a hub id or a local folder in the layout of diffusers.

        Raises:
            FuseError: diffusers is not installed, there is no such model, it is of another kind, or
                its files cannot be read.
        """
        pipeline = load_pipeline(model_id, dtype, **options)
        with loading(model_id):
            return cls(pipeline.to(device))

    def text_states(self, inputs: Inputs) -> Float[Tensor, "b t d"]:
        """Return what the U-Net is told of each text: the text encoder's last states of all tokens,
        padding included.
        """
        inputs = self._form.padded(inputs, self.vocabulary.embedding)
        with self.reading(inputs.embeddings):
            given = self._form.options(inputs.ids, inputs.mask.long())
            return self.network.text_encoder(**given)[0]

    def denoising_errors(self, inputs: Inputs, picture: NoisyPicture) -> Float[Tensor, "b k"]:
        """Return the mean squared error of what the U-Net says, given each text, of each noisy
        version of a picture.

        For a gradient, each version is read again, so that memory holds but one pass.
        """
        states, found = self.text_states(inputs), []
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        versions = [
            one.to(self.device) for one in (picture.latents, picture.timesteps, picture.targets)
        ]
        for version in zip(*versions, strict=True):
            found.append(checkpoint(self._error, states, *version, **options))
        return torch.stack(found, 1)

    def _error(
        self,
        states: Float[Tensor, "b t d"],
        latents: Float[Tensor, "c h w"],
        timestep: Int[Tensor, ""],
        target: Float[Tensor, "c h w"],
    ) -> Float[Tensor, " b"]:
        """Return the mean squared error at one noisy version of a picture, in float32 at least."""
        rows = latents.to(states).expand(len(states), *latents.shape)
        said = self.network.unet(rows, timestep, encoder_hidden_states=states).sample
        wide = torch.promote_types(said.dtype, torch.float32)
        return (said.to(wide) - target.to(wide)).square().mean((1, 2, 3))

    @torch.inference_mode(False)
    @torch.no_grad()
    def noisy_picture(
        self, image: Image, timesteps: int = 8, noise_samples: int = 1, seed: int = 0
    ) -> NoisyPicture:
        """Return noisy versions of a picture, which are the same on every call.

        Its middle square, as large as the U-Net was made for, is encoded by the VAE; its latents
        are the mode of the VAE's distribution.

        Args:
            timesteps: how many noise levels: of T that the schedule has, those in the middles of n
                equal parts, floor((i + 1/2) T / n).
            noise_samples: how many noises of each level.
            seed: of the noise.

        Raises:
            FuseError: more levels than the schedule has, or the networks cannot read the picture.
        """
        total = self._scheduler.config.num_train_timesteps
        if not 1 <= timesteps <= total:
            raise FuseError(f"timesteps={timesteps}: expected a number from 1 to {total}")
        levels = [(2 * i + 1) * total // (2 * timesteps) for i in range(timesteps)]
        at = torch.tensor(levels).repeat_interleave(noise_samples).to(self.device)
        with preparing("latents", "vae/config.json"):
            latents = self._latents(image)
        size = len(at), *latents.shape[1:]
        noise = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(latents)
        clean = latents.expand_as(noise)
        noisy = self._scheduler.add_noise(clean, noise, at)
        picture = NoisyPicture(noisy, at, self._target(clean, noise, at))
        with preparing("denoising error", "unet/config.json"):
            inputs = pad(Template().encode(self.vocabulary, TRIALS[:1]), self.device)
            self.denoising_errors(inputs, NoisyPicture(noisy[:1], at[:1], picture.targets[:1]))
        return picture

    def _latents(self, image: Image) -> Float[Tensor, "1 c h w"]:
        """Return the latents of a picture's middle square."""
        vae, size = self.network.vae, self.network.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        pixels = self._processor.preprocess(
            image, height * self._scale, width * self._scale, resize_mode="crop"
        )
        coded = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist.mode()
        return coded.float() * vae.config.scaling_factor

    def _target(self, clean: Tensor, noise: Tensor, at: Tensor) -> Tensor:
        """Return what the U-Net should say, by the scheduler's `prediction_type`.

        Raises:
            FuseError: it is not known.
        """
        kind = self._scheduler.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            return self._scheduler.get_velocity(clean, noise, at)
        if kind == "sample":
            return clean
        raise FuseError(
            f"prediction_type={kind}: expected epsilon, v_prediction or sample; "
            "choose another model"
        )

    def _check(self, pipeline: Any) -> None:
        """Check that the states of texts and the noise levels are the pipeline's own.

        Raises:
            FuseError: they are not.
        """
        own = getattr(pipeline.scheduler, "alphas_cumprod", None)
        if own is None or not torch.allclose(
            own.cpu(), self._scheduler.alphas_cumprod.cpu(), rtol=0, atol=1e-4
        ):
            kind = type(pipeline.scheduler).__name__
            raise FuseError(f"scheduler={kind}: expected one with noise levels as DDPM has them")
        expected, _ = pipeline.encode_prompt(list(TRIALS), self.device, 1, False)
        inputs = pad(Template().encode(self.vocabulary, TRIALS), self.device)
        error = relative_error(self.text_states(inputs).flatten(1), expected.flatten(1))
        if not error <= (MAX_COARSE_ERROR if is_coarse(self) else MAX_ERROR):
            raise FuseError(
                f"network={type(pipeline.text_encoder).__name__}: its states of a text are not "
                f"those of its pipeline (error {error:.1e}); choose another model"
            )
