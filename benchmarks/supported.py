"""Write SUPPORTED.md: which families of models serve in which role, as the matrix found it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import transformers
from checkpoints.family import VERDICTS
from runs import Row

HEAD = """# Supported families

Written by `python benchmarks/families.py --write`; do not edit. Each row is a tiny checkpoint with
random weights, of a family that transformers {version} loads for the role. It is compared with the
family's own forward pass, loaded plainly, one row at a time without a cache:

- *right*: the ids of a text, its loss, its gradient by one-hot tokens, the longest prompt, the
  losses with and without prefix cache and packing, and those of all candidates of a short search
  are equal to 1e-4;
- *refused*: one line says why, before a search begins;
- *wrong*, *traceback*: faults that are known;
- *no reference*: the family's own code does not read such a checkpoint.

`cache`: a prefix cache is used; `packing`: rows are packed into one. Each is tried on the network
at hand when it is loaded. Tokenizers are small ones, trained on a few lines: byte_bpe (as GPT-2's),
byte_bpe_bos (as Llama 3's), llama (as SentencePiece's), roberta, wordpiece (as BERT's), unigram_end
(as T5's), clip, siglip, siglip2. "As an encoder" are checkpoints that see the future, to be refused
as language models.
"""
MAX_NOTE = 160


def write(rows: Sequence[Row], file: Path) -> None:
    """Write the rows as tables, one a role."""
    roles = list(dict.fromkeys(row["role"] for row in rows))
    parts = [HEAD.format(version=transformers.__version__)]
    for role in roles:
        own = [row for row in rows if row["role"] == role]
        count = Counter(row["verdict"] for row in own)
        told = ", ".join(f"{count[verdict]} {verdict}" for verdict in VERDICTS if count[verdict])
        parts.append(f"## {role[0].upper()}{role[1:]}\n\n{len(own)} checkpoints: {told}.\n")
        parts.append(_table(own))
    file.write_text("\n".join(parts))


def _table(rows: Sequence[Row]) -> str:
    """Return a table of one role."""
    lines = ["| family | tokenizer | result | fast ways | known limits |", "|---|---|---|---|---|"]
    for row in rows:
        note = " ".join(row["note"].split()).replace("|", "/")[:MAX_NOTE]
        cells = (row["family"], row["tokenizer"], row["verdict"], row["fast ways"], note)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
