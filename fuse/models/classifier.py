"""Text classifiers: how likely each class is for a text."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.errors import FuseError
from fuse.models.base import VectorModel, load_network, load_pretrained
from fuse.types import Inputs


class Classifier(VectorModel):
    """A Hugging Face sequence classifier, of encoder or decoder type. `labels` are the names of its classes."""

    def __init__(self, network: Any, tokenizer: Any) -> None:
        config = network.config
        if config.num_labels < 2 or config.problem_type == "regression":
            kind = f"{config.num_labels} output(s), problem_type={config.problem_type}"
            raise FuseError(f"model_id={config.name_or_path}: it rates a text ({kind}); expected a classifier with two classes or more")
        self.labels = [str(config.id2label.get(i, i)) for i in range(config.num_labels)]
        limits = (getattr(config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length)
        super().__init__(network, tokenizer, network.get_input_embeddings(), min(limit for limit in limits if limit))
        self.pad_id = self._padding(config.get_text_config())

    @classmethod
    def load(cls, model_id: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", **options: Any) -> Classifier:
        """From a hub id or a local folder; `options` go to `from_pretrained`.

        Raises:
            FuseError: the model cannot be found or read, or has no classes.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        network = load_network(AutoModelForSequenceClassification, model_id, dtype=dtype, **options).to(device)
        return cls(network, load_pretrained(AutoTokenizer, model_id))

    def class_index(self, target: str | int) -> int:
        """The class of this name, upper or lower case alike, or of this index (from 0).

        Raises:
            FuseError: there is no such class.
        """
        lower = [label.lower() for label in self.labels]
        for names, name in ((self.labels, str(target)), (lower, str(target).lower())):
            if name in names and not isinstance(target, int):
                return names.index(name)
        if not isinstance(target, bool) and str(target).isdecimal() and int(target) < len(self.labels):
            return int(target)
        near = get_close_matches(str(target).lower(), lower, n=1)
        hint = f"did you mean {self.labels[lower.index(near[0])]}? " if near else ""
        raise FuseError(f"target={target}: {hint}expected one of {', '.join(self.labels)}, or an index from 0 to {len(self.labels) - 1}")

    def vector(self, inputs: Inputs) -> Float[Tensor, "b c"]:
        """log p(class | text). Where a text may be of several classes, each has its own yes or no.

        Raises:
            FuseError: an empty row, of a model without special tokens.
        """
        if not inputs.mask.any(1).all():
            raise FuseError("prefix='': this classifier has no start token, so that an empty text is no text to it; give a prefix")
        ids = torch.where(inputs.mask, inputs.ids, self.pad_id)
        with self.reading(inputs.embeddings):
            logits = self.network(input_ids=ids, attention_mask=inputs.mask.long()).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.network.config.problem_type == "multi_label_classification":
            return torch.nn.functional.logsigmoid(logits)
        return logits.log_softmax(-1)

    def _padding(self, config: Any) -> int:
        """The network's id of padding. A decoder finds a row's last token by it: where it has none, it is given one.

        That one is no token that a text ends with, so that every row is read to its end, in a batch as alone.
        """
        rows, tokenizer = len(self.vocabulary), self.vocabulary.tokenizer
        if config.pad_token_id is None or not 0 <= config.pad_token_id < rows:
            special = (tokenizer.pad_token_id, *tokenizer.all_special_ids, *range(rows))
            config.pad_token_id = next(i for i in special if i is not None and i < rows and i not in self.vocabulary.tail)
        return int(config.pad_token_id)
