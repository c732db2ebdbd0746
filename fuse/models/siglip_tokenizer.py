"""The tokenizer of SigLIP 1 as a fast one, which knows the characters of each token."""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, normalizers, processors


def fast_form(tokenizer: Any) -> Any:
    """Return a fast tokenizer that gives the ids of a slow one, if that is SigLIP's.

    It strips punctuation, as SigLIP's does. Special tokens within a text may be read otherwise.
    """
    from transformers import PreTrainedTokenizerFast, SiglipTokenizer
    from transformers.convert_slow_tokenizer import SpmConverter

    if not isinstance(tokenizer, SiglipTokenizer):
        return tokenizer
    fast = SpmConverter(tokenizer).converted()
    steps: list[Any] = [normalizers.Lowercase()] if tokenizer.do_lower_case else []
    steps.append(normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""))
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    fast.normalizer = normalizers.Sequence([*steps, fast.normalizer])
    end = tokenizer.eos_token
    fast.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    names = {name: getattr(tokenizer, name) for name in ("eos_token", "pad_token", "unk_token")}
    length, side = tokenizer.model_max_length, tokenizer.padding_side
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, model_max_length=length, padding_side=side, **names
    )
