"""What is sought with a model: each goal's options, and the loss that they describe.

Nothing here imports a network library before a loss is made. What is sought is looked at before
weights are loaded, so that a mistake is reported at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, cast

from typing_extensions import Doc

from fuse.app.hints import Config, Pictures, Text, Vector, Wanted
from fuse.app.values import naming
from fuse.errors import FuseError
from fuse.options import Count, NotNegative, OneOf, Positive, Share, Whole
from fuse.registry import LM_LOSSES, VECTOR_LOSSES

if TYPE_CHECKING:
    from jaxtyping import Float
    from PIL.Image import Image
    from torch import Tensor

CROPPED = 0.8
"""The sides of a crop, as a share of those of its picture."""
LengthPenalty = Annotated[
    Share, Doc("of fluency: the sum over n tokens / n ** length_penalty; 1: their mean, 0: the sum")
]
Loader = Callable[[], Any]
"""Loads the model of an entry."""
Sought = tuple[Any, Any]
"""A model, and the loss that is minimised with it."""


class Goal(Protocol):
    """A dataclass of options."""

    @staticmethod
    def sought(config: Config, key: str, load_model: Loader) -> Sought:
        """Return the model and the loss of an entry of the configuration.

        Raises:
            FuseError: what is sought is missing, or cannot be had with this model.
        """


@dataclass(frozen=True)
class FluencyOrLabel:
    """What is sought with a causal LM."""

    loss: Annotated[
        Annotated[str, OneOf(tuple(LM_LOSSES))] | None,
        Doc(
            "nll, log_prob, kl_div: fluency; cross_entropy: how readily the LM says the label; "
            "activation: what is computed within; null: cross_entropy with a label, else nll"
        ),
    ]
    label: Annotated[Text | None, Doc("the text that it shall say")]
    perplexity_weight: Annotated[
        NotNegative, Doc("of cross_entropy: weight of the prompt's own nll")
    ]
    tau: Annotated[
        Positive,
        Doc("of kl_div: width of a token's neighbourhood, in squared units of the embeddings"),
    ]
    length_penalty: LengthPenalty
    layer: Annotated[
        Text | Whole | None,
        Doc("of activation: a layer's number, from 0, or the name of a module of the network"),
    ] = None
    neuron: Annotated[
        Whole | None, Doc("of activation: the index of a number of it; of a probe, the class")
    ] = None
    direction: Annotated[
        Vector, Doc("of activation: a vector in the neuron's place; or a probe, a row each class")
    ] = None
    pooling: Annotated[
        Literal["last", "mean", "max"], Doc("of activation: over which tokens of the prompt")
    ] = "last"

    @staticmethod
    def sought(config: Config, key: str, load_model: Loader) -> Sought:
        name = config["loss"] or ("cross_entropy" if config["label"] else "nll")
        kind = LM_LOSSES[name]
        options = {field.name: config[field.name] for field in dataclasses.fields(kind)}
        with naming(key):
            if options.get("direction") is not None:
                from fuse.app.vectors import read_numbers

                options["direction"] = read_numbers(options["direction"], "direction")
            loss = kind(**options)
        model = load_model()
        if name == "activation":
            with naming(key):
                loss.module(model)
        return model, loss


@dataclass(frozen=True)
class Fluency:
    """What is sought with a masked LM: nothing but fluency."""

    length_penalty: LengthPenalty

    @staticmethod
    def sought(config: Config, key: str, load_model: Loader) -> Sought:
        return load_model(), LM_LOSSES["nll"](length_penalty=config["length_penalty"])


@dataclass(frozen=True)
class ImageGoal:
    """What is sought with a model that looks at a picture."""

    image: Annotated[
        Pictures, Doc("the picture that the text is to fit; of an entry's own list: all of them")
    ]
    target_vector: Annotated[Vector, Doc("a known embedding, in the picture's place")] = None
    crops: Annotated[
        bool, Doc("whether its corners and its middle, 80% of its sides, count beside the whole")
    ] = False

    @staticmethod
    def sought(config: Config, key: str, load_model: Loader) -> Sought:
        if config.get("target_vector") is not None:
            return _likeness_to_vector(config, key, load_model)
        images = config["image"]
        if not isinstance(images, list):
            images = [required_image(config, key)]
        if config.get("crops"):
            images = [view for image in images for view in _with_crops(image)]
        model = load_model()
        return model, VECTOR_LOSSES["cosine_distance"](_mean_direction(model.embed_images(images)))


@dataclass(frozen=True)
class CaptionGoal:
    """What is sought with a model that talks about a picture."""

    image: Annotated[Pictures, Doc("the picture that the text is to describe")]
    instruction: Annotated[Text, Doc("what it is asked about the picture")]

    @staticmethod
    def sought(config: Config, key: str, load_model: Loader) -> Sought:
        image = required_image(config, key)
        model = load_model()
        with naming(key):
            return model.looking_at(image, config["instruction"]), LM_LOSSES["nll"]()


@dataclass(frozen=True)
class DenoisingGoal:
    """What is sought with a model that draws."""

    image: Annotated[Pictures, Doc("the picture that is to be drawn of the text")]
    timesteps: Annotated[
        Count, Doc("noise levels, in the middles of so many equal parts of the schedule")
    ]
    noise_samples: Annotated[Count, Doc("noises of each level")]
    noise_seed: Annotated[Whole, Doc("the same seed gives the same noise")]

    @staticmethod
    def sought(config: Config, key: str, load_model: Loader) -> Sought:
        from fuse.losses import DenoisingError

        image = required_image(config, key)
        model = load_model()
        options = config["timesteps"], config["noise_samples"], config["noise_seed"]
        with naming(key):
            return model, DenoisingError(model.noisy_picture(image, *options))


@dataclass(frozen=True)
class TextGoal:
    """What is sought with a sentence encoder."""

    target: Annotated[Text | None, Doc("the text whose meaning is sought")]
    target_vector: Annotated[Vector, Doc("a known embedding, in the text's place")] = None

    @staticmethod
    def sought(config: Config, key: str, load_model: Loader) -> Sought:
        if config.get("target_vector") is not None:
            return _likeness_to_vector(config, key, load_model)
        if not config["target"]:
            raise FuseError(
                f"target=null: {key} needs a text whose meaning is sought; "
                f'give target="TEXT", or {key}.target_vector=FILE'
            )
        model = load_model()
        return model, VECTOR_LOSSES["cosine_distance"](model.embed_texts([config["target"]])[0])


@dataclass(frozen=True)
class ClassGoal:
    """What is sought with a classifier."""

    target: Annotated[Wanted, Doc("the class that is sought, its name or its number; or a rating")]

    @staticmethod
    def sought(config: Config, key: str, load_model: Loader) -> Sought:
        model = load_model()
        with naming(key):
            if model.rates:
                return model, VECTOR_LOSSES["squared_distance"](model.rating(config["target"]))
            return model, VECTOR_LOSSES["class_nll"](model.class_index(config["target"]))


GOALS: dict[str, type[Goal]] = {
    "fluency or label": FluencyOrLabel,
    "fluency": Fluency,
    "image": ImageGoal,
    "caption": CaptionGoal,
    "denoising": DenoisingGoal,
    "text": TextGoal,
    "class": ClassGoal,
}
"""What is sought with a model, by `Model.goal`. Its fields are what the model's entry holds."""


def required_image(config: Config, key: str) -> Image:
    """Return the opened picture of an entry that looks at one."""
    if config["image"] is None:
        raise FuseError(
            f"image=null: {key} looks at a picture; give image=PATH, or choose models without one"
        )
    if isinstance(config["image"], list):
        raise FuseError(
            f"{key}.image: {len(config['image'])} pictures; expected one picture, as this kind of "
            "model looks at one alone"
        )
    return cast("Image", config["image"])


def _with_crops(image: Image) -> list[Image]:
    """Return a picture, its four corners and its middle."""
    from torchvision.transforms.functional import five_crop

    height, width = (max(1, round(CROPPED * side)) for side in (image.height, image.width))
    return [image, *five_crop(image, [height, width])]


def _mean_direction(vectors: Float[Tensor, "n e"]) -> Float[Tensor, " e"]:
    """Return the mean of the unit vectors, which is as near to all of them as can be."""
    if len(vectors) == 1:
        return vectors[0]
    return (vectors / vectors.norm(dim=-1, keepdim=True)).mean(0)


def _likeness_to_vector(config: Config, key: str, load_model: Loader) -> Sought:
    from fuse.app.vectors import read_vector

    with naming(key):
        vector = read_vector(config["target_vector"])
    model = load_model()
    loss = VECTOR_LOSSES["cosine_distance"](vector.to(model.device), "target_vector")
    with naming(key):
        loss.at(model.embed_texts(["a"]))  # is it as wide as the model's own?
    return model, loss
