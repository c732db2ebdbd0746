"""Find the parts of a dual encoder that read texts, whatever its family calls them."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from fuse.errors import FuseError
from fuse.nn.fixed_layers import IMAGE_TOWERS
from fuse.nn.network_view import input_device, network_view


def token_layer(network: Any) -> Any:
    """Return the embedding layer in which a dual encoder looks the tokens of a text up.

    Raises:
        FuseError: it is no dual encoder, or there is no such layer.
    """
    kind = type(network).__name__
    for name in ("get_text_features", "get_image_features"):
        if not hasattr(network, name):
            raise FuseError(
                f"network={kind}: it has no {name}; expected a dual encoder of texts and pictures, "
                "such as CLIP or SigLIP"
            )
    view, _ = network_view(network)
    ids = torch.tensor([[3, 1, 2, 0]], device=input_device(view))
    found: list[str] = []
    for name, module in view.named_modules():
        if isinstance(module, torch.nn.Embedding):
            module.register_forward_pre_hook(
                lambda _, given, name=name: found.extend([name] * _equal(given[0], ids))
            )
    view.get_text_features(input_ids=ids)
    if not found:
        raise FuseError(f"network={kind}: it looks no tokens up; choose another dual encoder")
    return network.get_submodule(found[0])


def _equal(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal, wherever they are."""
    return torch.equal(left.cpu(), right.cpu())


def num_positions(network: Any) -> int:
    """Return how many tokens there are positions for; some begin behind their padding id."""
    found = sys.maxsize
    for name, module in network.named_modules():
        in_image_tower = name.partition(".")[0] in IMAGE_TOWERS
        if "position" in name and isinstance(module, torch.nn.Embedding) and not in_image_tower:
            before = 0 if module.padding_idx is None else module.padding_idx + 1
            found = min(found, module.num_embeddings - before)
    return found
