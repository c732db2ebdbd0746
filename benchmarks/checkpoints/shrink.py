"""Make a tiny config of any family: its default one, with smaller numbers by their names."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from typing import Any

from checkpoints.exceptions import EXCEPTIONS

SPARE_ROWS = 3
"""How many rows an embedding table has beyond the tokens, as padded tables of real models have."""
NUM_LAYERS = 3
MAX_LAYERS = 6
WIDTH, HEADS = 32, 4

RULES: tuple[tuple[str, int | None], ...] = (
    (r"vocab.*size|^num_embeddings$", None),
    (r"per_tok|top_?k_experts|moe_topk|^moe_k$|experts_per|^top_k$|^num_selected|router_top", 2),
    (r"n_shared_experts|num_shared_experts|shared_expert_num", 1),
    (
        r"expert.*(size|dim)|ffn|intermediate|mlp_(dim|size)|feed_?forward|n_inner|d_?ff|dim_ff|d_inner",
        48,
    ),
    (
        r"(num|n)_(local_|routed_|zero_|moe_)*experts$|moe_num_experts|num_moe|^num_experts|zero_expert",
        4,
    ),
    (r"^n_group$|^num_expert_group|^num_groups?$", 2),
    (r"^topk_group$|topk_groups", 1),
    (r"rope_head_dim|rotary_dim", 4),
    (r"q_lora_rank|kv_lora_rank|lora_rank|lora_dim|_rank$", 12),
    (r"index_topk|compress_topk", 4),
    (r"key_value|kv_heads|n_kv|num_kv|multi_query_groups|num_groups_kv", 2),
    (r"head_dim|head_size|kv_channels|d_kv|d_head|attention_head_dim|dim_head|dim_per_head", 8),
    (r"index.*heads", 16),  # with few of them many scores are 0, and which come first is open
    (r"mamba_n_heads|mamba_num_heads|num_v_heads|value_heads|n_mamba_heads", 8),
    (r"heads?$|^n_head|heads", HEADS),
    (r"window|attention_chunk", 4),
    (r"chunk_size", 4),
    (
        r"num_.*layers|n_layers?|^depth$|num_blocks|decoder_depth|layers$|n_layer|num_layers",
        NUM_LAYERS,
    ),
    (
        r"positions?_embeddings|n_positions|n_ctx|max_(source|target)_pos|max_seq|seq_len|seq_length|max_len",
        64,
    ),
    (r"state_size|d_state|ssm_state", 8),
    (r"(image|crop)_size|input_resolution", 32),
    (r"patch_size", 8),
    (r"projection_dim|embedding_size|embedding_dim|^embed_dim", WIDTH),
    (
        r"hidden_?(size|dim)|d_model|n_embd|^width$|^dim$|lru_width|d_embed|_width$|_dim$|_size$|channels",
        WIDTH,
    ),
)
"""What each kind of number becomes where it is larger, by the first pattern in its name."""
KEPT = re.compile(
    r"_id$|_ids$|theta|batch|num_labels|kernel|d_conv|num_channels|in_channels|out_features|token_"
    r"|merge_size|downsample|stride|type_vocab|num_image|version|temporal_patch|_freq|interval|step"
    r"|pad_vocab|keep_window|attn_temperature|floor_scale|truncate|initial|warmup"
)
"""Numbers of these names are no sizes, or small ones."""
SPECIAL_TOKENS = ("bos", "eos", "pad", "cls", "sep", "mask")
WIDTHS = re.compile(r"^(num_)?kv|key_value")


def tiny_config(config_class: Any, tokenizer: Any, **more: Any) -> Any:
    """Return a config of this class that takes little memory.

    Args:
        tokenizer: its special tokens are the config's.
        more: entries of the config that the family's role needs.
    """
    return config_class(**tiny_fields(config_class, tokenizer) | more)


def tiny_fields(config_class: Any, tokenizer: Any) -> dict[str, Any]:
    """Return the arguments of a tiny config: what differs from its defaults."""
    overrides = EXCEPTIONS.get(config_class.model_type, {})
    vocabulary_size = len(tokenizer)
    default = config_class()
    parts = config_class.sub_configs
    found: dict[str, Any] = {}
    own_names = names(config_class)
    for name in own_names:
        value = _value(default, name)
        if name in parts:
            continue
        if name == "head_dim" and value is None:
            found[name] = WIDTH // HEADS
        if isinstance(value, bool) or not isinstance(value, (int, dict)):
            continue
        if isinstance(value, dict):
            if name in ("rope_parameters", "rope_scaling") and value:
                found[name] = _tiny_rope(value)
            continue
        small = _small(name, value, default, vocabulary_size)
        if small != value:
            found[name] = small
    found |= _tiny_layers(default, config_class)
    found |= _special_tokens(own_names, tokenizer)
    for name, kind in parts.items():
        part = _value(default, name)
        if part is None or overrides.get(name, part) is None:
            continue
        own_class = type(part) if part is not None else kind
        if hasattr(own_class, "sub_configs") and own_class.__name__ != "AutoConfig":
            found[name] = tiny_fields(own_class, tokenizer)
            found[name].setdefault("model_type", own_class.model_type)
    return found | {name: value for name, value in overrides.items() if value is not None}


def names(config_class: Any) -> list[str]:
    """Return the names of a config's own fields."""
    return [field.name for field in fields(config_class)] if is_dataclass(config_class) else []


def _value(config: Any, name: str) -> Any:
    """Return a config's entry, its default where layers differ in it."""
    try:
        return getattr(config, name, None)
    except AttributeError:
        raise
    except Exception:  # it is an error of transformers' own to ask for such an entry
        return type(config).__dataclass_fields__[name].default


def _special_tokens(names: list[str], tokenizer: Any) -> dict[str, int | None]:
    """Return the special tokens of a tokenizer, as far as a config asks for such."""
    found = {kind: getattr(tokenizer, f"{kind}_token_id") for kind in SPECIAL_TOKENS}
    for kind, other in (("bos", "cls"), ("eos", "sep")):
        if found[kind] is None:
            found[kind] = found[other]
    kept = {}
    for kind, token in found.items():
        if f"{kind}_token_id" in names and (token is not None or kind in ("bos", "eos", "pad")):
            kept[f"{kind}_token_id"] = token
    return kept


def _small(name: str, value: int, default: Any, vocabulary_size: int) -> int:
    """Return what a number of this name becomes."""
    if KEPT.search(name) and not re.search(r"^vocab_size", name):
        return value
    matching = [small for pattern, small in RULES if re.search(pattern, name)]
    if not matching:
        return value
    small = matching[0]
    if small is None:
        return vocabulary_size + SPARE_ROWS
    if WIDTHS.search(name):  # as many as heads, one, or fewer than heads
        heads = _value(default, "num_attention_heads")
        return HEADS if value == heads and value > 1 else min(value, small)
    return min(value, small)


def _tiny_layers(default: Any, config_class: Any) -> dict[str, Any]:
    """Return lists with an entry a layer, and their length: one layer of each kind at least."""
    count = getattr(default, "num_hidden_layers", None)
    if not isinstance(count, int):
        return {}
    lists = {}
    for name in names(config_class):
        value = _value(default, name)
        if isinstance(value, (list, tuple)) and len(value) == count:
            lists[name] = list(value)
    if not lists:
        return {}
    kinds: list[tuple[Any, ...]] = []
    kept: list[int] = []
    for i in range(count):
        kind = tuple(str(own[i]) for own in lists.values())
        if kind not in kinds and len(kept) < MAX_LAYERS:
            kinds.append(kind)
            kept.append(i)
    while len(kept) < min(NUM_LAYERS, count):
        kept.append(kept[len(kept) % len(kinds)])
    tiny = {name: [own[i] for i in kept] for name, own in lists.items()}
    length = next((n for n in ("num_hidden_layers", "n_layer") if n in names(config_class)), "")
    return tiny | ({length: len(kept)} if length else {})


def _tiny_rope(value: dict[str, Any]) -> dict[str, Any]:
    """Return parameters of rotary positions for narrow heads."""
    tiny = {}
    for key, own in value.items():
        if isinstance(own, dict):
            tiny[key] = _tiny_rope(own)
        elif key == "mrope_section":
            tiny[key] = [2, 1, 1]
        elif key == "original_max_position_embeddings":
            tiny[key] = 32
        else:
            tiny[key] = own
    return tiny
