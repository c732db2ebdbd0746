"""Export the demo CLIP as a checkpoint folder of open_clip, to be loaded without any network.

python scripts/export_open_clip.py            # fuse/demo/clip -> fuse/demo/open_clip, two seconds

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:fuse/demo/open_clip")
tokenizer = open_clip.get_tokenizer("local-dir:fuse/demo/open_clip")

Both load in float32, the path may be relative or absolute, and `model.eval()` is the caller's to
call. Unit vectors of texts and of pictures differ from those of transformers' CLIPModel by less
than 1e-6 (`--check` prints the largest difference over `images/`); in pictures of odd sizes, the
resizing of the two may differ by 1/255 in some pixels.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize
from train_lm import DEMO
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

TEXTS = (
    "A red house stands in the snow.",
    "By the sea there is a small orange boat",
    "zebra!",
    "",
    "a " * 80,
)
NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.out_proj.": ".attn.out_proj.",
}


def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the names of open_clip.

    Queries, keys and values are in one matrix, projections are transposed.
    """
    new: dict[str, Tensor] = {}
    for name, weight in state.items():
        if name.endswith("_projection.weight"):
            renamed_to = "text_projection" if name.startswith("text") else "visual.proj"
            new[renamed_to] = weight.T.contiguous()
        elif ".k_proj." in name or ".v_proj." in name:
            continue
        elif ".q_proj." in name:
            layer, part = name.split("self_attn.q_proj.")
            rows = [state[f"{layer}self_attn.{which}_proj.{part}"] for which in "qkv"]
            new[renamed(layer) + f"attn.in_proj_{part}"] = torch.cat(rows)
        else:
            new[renamed(name)] = weight
    return new


def renamed(name: str) -> str:
    """Return a weight's name in open_clip."""
    for old, new in NAMES.items():
        name = name.replace(old, new)
    return name


def described(config: CLIPConfig, eos: int, processor: CLIPImageProcessor) -> dict:
    """Return what `open_clip_config.json` says of the network and of its pictures."""
    text: Any = config.text_config
    vision: Any = config.vision_config
    return {
        "model_cfg": {
            "embed_dim": config.projection_dim,
            "quick_gelu": text.hidden_act == "quick_gelu",
            "vision_cfg": {
                "image_size": vision.image_size, "patch_size": vision.patch_size,
                "layers": vision.num_hidden_layers, "width": vision.hidden_size,
                "head_width": vision.hidden_size // vision.num_attention_heads,
                "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            },
            "text_cfg": {
                "context_length": text.max_position_embeddings, "vocab_size": text.vocab_size,
                "width": text.hidden_size,
                "heads": text.num_attention_heads, "layers": text.num_hidden_layers,
                "mlp_ratio": text.intermediate_size / text.hidden_size,
                "hf_tokenizer_name": "open_clip",
                "tokenizer_kwargs": {"clean": "whitespace"}, "pool_type": "eos", "eos_id": eos,
                "pad_id": text.pad_token_id,
            },
        },
        "preprocess_cfg": {
            "size": [processor.size["height"], processor.size["width"]],
            "mean": list(processor.image_mean),
            "std": list(processor.image_std), "interpolation": "bilinear", "resize_mode": "squash",
        },
    }  # fmt: skip


def export(source: Path, target: Path) -> None:
    """Write the folder of open_clip."""
    model, tokenizer = CLIPModel.from_pretrained(source), CLIPTokenizer.from_pretrained(source)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, target / name)
    processor = CLIPImageProcessor.from_pretrained(source)
    about = described(model.config, tokenizer.eos_token_id, processor)
    (target / "open_clip_config.json").write_text(json.dumps(about, indent=1) + "\n")
    weights = {}
    for name, weight in converted(model.state_dict()).items():
        if not name.endswith("position_ids"):
            weights[name] = weight.half()
    save_file(weights, target / "open_clip_model.safetensors", metadata={"format": "pt"})
    (target / "open_clip_model.safetensors").chmod(0o644)


@torch.no_grad()
def differences(source: Path, target: Path, pictures: list[Path]) -> dict[str, float]:
    """Return the largest differences between both folders, in unit vectors and in pixels."""
    import open_clip
    from PIL import Image

    clip = CLIPModel.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(source)
    processor = CLIPImageProcessor.from_pretrained(source)
    other, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{target}")
    other.eval()
    read = tokenizer(list(TEXTS), padding=True, truncation=True, return_tensors="pt")
    texts = normalize(clip.get_text_features(**read).pooler_output, dim=-1)
    ids = open_clip.get_tokenizer(f"local-dir:{target}")(list(TEXTS))
    images = [Image.open(path).convert("RGB") for path in pictures]
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    pixels_there = torch.stack([preprocess(image) for image in images])
    vectors = normalize(clip.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    pairs = {
        "texts": (texts, other.encode_text(ids, normalize=True)),
        "pictures of equal pixels": (vectors, other.encode_image(pixels, normalize=True)),
        "pictures": (vectors, other.encode_image(pixels_there, normalize=True)),
        "pixels (of -1 to 1)": (pixels, pixels_there),
        "scale": (clip.logit_scale.exp(), other.logit_scale.exp()),
    }
    return {name: (a - b).abs().max().item() for name, (a, b) in pairs.items()}


def main() -> None:
    """Export, and compare if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, default=DEMO / "clip")
    parser.add_argument("--out", type=Path, default=DEMO / "open_clip")
    parser.add_argument(
        "--check", action="store_true", help="print how far the two models differ on `images/`"
    )
    options = parser.parse_args()
    export(options.source, options.out)
    if options.check:
        pictures = sorted((DEMO.parents[1] / "images").glob("*.png"))
        print(json.dumps(differences(options.source, options.out, pictures), indent=1))


if __name__ == "__main__":
    main()
