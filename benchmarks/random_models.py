"""Networks of random weights with real tokenizers, saved as folders that every library loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def _llama(layers: int, width: int, intermediate: int, heads: int, kv_heads: int) -> LlamaConfig:
    """A Llama of GPT-2's tokens; the base of its rotations is the default of every version."""
    return LlamaConfig(
        vocab_size=50257, num_hidden_layers=layers, hidden_size=width,
        intermediate_size=intermediate, num_attention_heads=heads, num_key_value_heads=kv_heads,
        rope_theta=10000.0, tie_word_embeddings=True, bos_token_id=50256, eos_token_id=50256,
    )  # fmt: skip


LMS = {
    "6x384": GPT2Config(n_layer=6, n_embd=384, n_head=6),
    "6x384-4096": GPT2Config(n_layer=6, n_embd=384, n_head=6, n_positions=4096),
    "12x768": GPT2Config(n_layer=12, n_embd=768, n_head=12),
    "SmolLM2-135M": _llama(30, 576, 1536, 9, 3),
    "Llama-1B": _llama(16, 2048, 8192, 32, 8),
}
"""Shapes of language models by name: layers, width, and how many positions, where unusual."""


def save_lm(
    folder: Path,
    tokenizers: Path,
    shape: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Save a language model of random weights, drawn on a device."""
    path = folder / f"lm-{shape}"
    if not path.exists():
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(tokenizers / "gpt2")
        tokenizer.chat_template = CHAT
        tokenizer.model_max_length = LMS[shape].max_position_embeddings
        tokenizer.save_pretrained(path)
        kind = GPT2LMHeadModel if isinstance(LMS[shape], GPT2Config) else LlamaForCausalLM
        with torch.device(device):
            network = kind(LMS[shape])
        network.to(dtype).save_pretrained(path)
    return path


def layer_weights(config: Any) -> int:
    """How many weights the matrices of a language model's layers have."""
    width = config.hidden_size
    if isinstance(config, GPT2Config):
        return 12 * config.num_hidden_layers * width**2
    keys_values = 2 * width * config.num_key_value_heads * config.head_dim
    layer = 2 * width**2 + keys_values + 3 * width * config.intermediate_size
    return config.num_hidden_layers * layer


def save_clip(folder: Path, tokenizers: Path, layers: int, width: int) -> Path:
    """A CLIP of random weights, its text tower of this size."""
    path = folder / f"clip-{layers}x{width}"
    if not path.exists():
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(tokenizers / "clip")
        end = tokenizer.eos_token_id
        text = CLIPTextConfig(
            num_hidden_layers=layers, hidden_size=width, intermediate_size=4 * width,
            num_attention_heads=width // 64,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end,
        )  # fmt: skip
        vision = CLIPVisionConfig(
            num_hidden_layers=1,
            hidden_size=64,
            intermediate_size=64,
            num_attention_heads=1,
            image_size=32,
        )
        tokenizer.save_pretrained(path)
        CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ).save_pretrained(path)
        CLIPModel(
            CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
        ).save_pretrained(path)
    return path
