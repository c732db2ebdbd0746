"""Text classifiers: how likely each class is for a text, or how a text is rated."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.errors import FuseError, did_you_mean
from fuse.models.base import VectorModel, context_length
from fuse.models.loading import load_network, load_pretrained, loading
from fuse.models.proof import FastWay
from fuse.models.vector_proof import prove_gradient, settle
from fuse.nn.batch import Inputs, unpadded
from fuse.nn.lm_head import widened
from fuse.options import shown


class Classifier(VectorModel):
    """A Hugging Face sequence classifier, of encoder, decoder or encoder-decoder type.

    `labels` are the names of its classes. One with a single output rates a text instead, as reward
    models do (`rates`).

    Raises:
        FuseError: the network rates a text by several numbers, or cannot tell where a text ends.
    """

    goal = "class"

    def __init__(self, network: Any, tokenizer: Any) -> None:
        config = network.config
        self.several = config.problem_type == "multi_label_classification"
        """Whether a text may be of several classes."""
        single = config.num_labels == 1 and not self.several
        self.rates = single or config.problem_type == "regression"
        if config.num_labels < 1 or (self.rates and not single):
            raise FuseError(
                f"model_id={config.name_or_path}: it has {config.num_labels} outputs "
                f"(problem_type={config.problem_type}); expected classes, or one rating"
            )
        self.labels = [str(config.id2label.get(i, i)) for i in range(config.num_labels)]
        length = context_length(config, tokenizer)
        super().__init__(network, tokenizer, network.get_input_embeddings(), length)
        self.pad_id = self._padding(self.network.config.get_text_config())
        self.acceleration.turn(False)
        self.turn_padding(False)
        packed = FastWay("prepacked weights", self.acceleration.turn)
        settle(self, [FastWay("padded rows", self.turn_padding), packed])
        prove_gradient(self, self.vector)

    def turn_padding(self, on: bool) -> None:
        """Read rows of unequal length as a batch, or one by one."""
        self._pads = on

    @classmethod
    def load(
        cls,
        model_id: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> Classifier:
        """Load a model from a hub id or a local folder; `options` go to `from_pretrained`.

        Raises:
            FuseError: the model cannot be found or read, or has neither classes nor a rating.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        kind = AutoModelForSequenceClassification
        network = load_network(kind, model_id, device, dtype=dtype, may_lack="", **options)
        tokenizer = load_pretrained(AutoTokenizer, model_id, **options)
        with loading(model_id):
            return cls(network, tokenizer)

    def class_index(self, target: str | int) -> int:
        """Return the index of a class by its name, whatever its case, or by its index (from 0).

        Raises:
            FuseError: there is no such class.
        """
        name, labels = str(target), self.labels
        if not isinstance(target, int):
            lower = [label.lower() for label in labels]
            if name in labels:
                return labels.index(name)
            if name.lower() in lower:
                return lower.index(name.lower())
        if not isinstance(target, bool) and name.isdecimal() and int(name) < len(labels):
            return int(name)
        raise FuseError(
            f"target={target}: {did_you_mean(target, labels)}expected one of {', '.join(labels)}, "
            f"or an index from 0 to {len(labels) - 1}"
        )

    def rating(self, target: str | float) -> float:
        """Return a rating that is sought, as a number.

        Raises:
            FuseError: it is none.
        """
        with suppress(TypeError, ValueError):
            if not isinstance(target, bool) and math.isfinite(float(target)):
                return float(target)
        raise FuseError(
            f"target={shown(target)}: this model rates a text; "
            "expected the rating sought, a number such as 0.9"
        )

    def vector(self, inputs: Inputs) -> Float[Tensor, "b c"]:
        """Return log p(class | text); of a model that rates, the rating.

        If a text may be of several classes, each is a yes or no.

        Raises:
            FuseError: an empty row, of a model without special tokens.
        """
        if not inputs.mask.any(1).all():
            raise FuseError(
                "prefix='': this classifier has no start token, so that it cannot read "
                "an empty text; give a prefix"
            )
        logits = self._padded(inputs) if self._pads else self._one_by_one(inputs)
        if self.rates:
            return logits
        return torch.nn.functional.logsigmoid(logits) if self.several else logits.log_softmax(-1)

    def _padded(self, inputs: Inputs) -> Float[Tensor, "b c"]:
        """Read the rows as one batch."""
        ids = torch.where(inputs.mask, inputs.ids, self.pad_id)
        with self.reading(inputs.embeddings):
            return widened(self.network(input_ids=ids, attention_mask=inputs.mask.long()).logits)

    def _one_by_one(self, inputs: Inputs) -> Float[Tensor, "b c"]:
        """Read each row plainly, with neither padding nor mask."""
        found = []
        for row in unpadded(inputs):
            with self.reading(row.embeddings):
                found.append(widened(self.network(input_ids=row.ids).logits))
        return torch.cat(found)

    def _padding(self, config: Any) -> int:
        """Return the network's id of padding. A decoder finds a row's last token by it.

        A network without one is given one that no text ends with, so that every row is read to its
        end: a special token, or one that no search may use.
        """
        rows, tokenizer = len(self.vocabulary), self.vocabulary.tokenizer
        if config.pad_token_id is None or not 0 <= config.pad_token_id < rows:
            unused = (~self.vocabulary.allowed).nonzero()[:, 0].tolist()
            for token in (tokenizer.pad_token_id, *tokenizer.all_special_ids, *unused):
                if token is not None and token < rows and token not in self.vocabulary.tail:
                    config.pad_token_id = token
                    return int(token)
            raise FuseError(
                f"model_id={config.name_or_path}: it has no token for padding, and none that could "
                "be; set pad_token_id in its config.json, or choose another model"
            )
        return int(config.pad_token_id)
