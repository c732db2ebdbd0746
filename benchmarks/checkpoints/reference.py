"""The family's own results: its network loaded plainly by transformers, one row at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fuse
from checkpoints.family import NoReference


def load_plainly(auto_class: Any, folder: Path) -> Any:
    """Load a network by transformers alone, with eager attention where it has that."""
    options = {"dtype": torch.float32, "trust_remote_code": False}
    try:
        network = auto_class.from_pretrained(folder, attn_implementation="eager", **options)
    except ValueError:
        network = auto_class.from_pretrained(folder, **options)
    return network.eval()


class Reference(ABC):
    """What a family's network makes of one row.

    Args:
        network: loaded plainly.
        tokenizer: the checkpoint's.
        layer: what looks the ids up; the network's own where none is given.
    """

    def __init__(self, network: Any, tokenizer: Any, layer: Any = None) -> None:
        self.network, self.tokenizer = network, tokenizer
        self.layer = network.get_input_embeddings() if layer is None else layer
        if self.layer is None:
            raise NoReference("it has no embedding layer")
        self._known: dict[Any, float] = {}

    @abstractmethod
    def loss(
        self, term: fuse.Term, prompt: str, row: Any, embeddings: Tensor | None = None
    ) -> Tensor:
        """Return the loss of a prompt.

        Args:
            row: what the model reads, as the library has it.
            embeddings: what is read instead of the row's own [t d].
        """

    @torch.no_grad()
    def value(self, term: fuse.Term, prompt: str) -> float:
        """Return the loss of a prompt; one that was asked for before is not computed anew."""
        key = (term.template, prompt)
        if key not in self._known:
            self._known[key] = float(self.loss(term, prompt, term.encode([prompt])[0]))
        return self._known[key]

    def ids(self, term: fuse.Term, prompt: str) -> tuple[int, ...]:
        """Return the ids of a prompt within its fixed text, by the tokenizer alone."""
        return tuple(self.tokenizer(term.template.render(prompt)[0]).input_ids)

    def run(self, ids: Any, embeddings: Tensor | None = None, **options: Any) -> Any:
        """Run the network on one row."""
        row = torch.as_tensor(ids)[None]
        if embeddings is None:
            return self.network(input_ids=row, **options)
        # A copy: some networks change their embeddings in place
        with self.layer.register_forward_hook(lambda *_: embeddings[None].clone()):
            return self.network(input_ids=row, **options)

    def token_gradient(self, term: fuse.Term, prompt: str, row: Any) -> Tensor:
        """Return the gradient [s v] by the one-hot tokens of the prompt, as the network's input."""
        if len(self._lookups()) > 1:
            return self._gradient_by_rows(term, prompt, row)
        with torch.no_grad():
            table = self.layer(torch.arange(self.layer.num_embeddings))
            embeddings = self.layer(torch.tensor([row.ids]))[0]
        embeddings = embeddings.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(term, prompt, row, embeddings), embeddings)
        return gradient[slice(*row.free)] @ table.T

    def _lookups(self) -> list[Any]:
        """Return all layers that look tokens up in the table of the embedding layer."""
        table, found = self.layer.weight, []
        for module in self.network.modules():
            embeds = isinstance(module, torch.nn.Embedding) and module.weight.shape == table.shape
            if embeds and torch.equal(module.weight, table):
                found.append(module)
        return found

    def _gradient_by_rows(self, term: fuse.Term, prompt: str, row: Any) -> Tensor:
        """Do so where several layers look tokens up in one table, such as those of encoder and
        decoder: each token of the prompt is given a row of its own, at the end of the table.
        """
        table = self.layer.weight.detach()
        start, end = row.free
        own = table[list(row.free_ids)].clone().requires_grad_()
        longer, layers = torch.cat([table, own]), self._lookups()
        ids = (*row.ids[:start], *range(len(table), len(longer)), *row.ids[end:])
        for module in layers:
            module._parameters.pop("weight")
            module.weight = longer
        try:
            (gradient,) = torch.autograd.grad(self.loss(term, prompt, replace(row, ids=ids)), own)
        finally:
            for module in layers:
                del module.weight
                module.weight = torch.nn.Parameter(table)
        return gradient @ table.T
