"""A real general language model, SmolLM2 from its GGUF file: every method, beside a CLIP and a
sentence encoder, and a chat template; losses are those of transformers.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import REALBED
from transformers import AutoModelForCausalLM

from fuse import Result
from fuse.app.build import build
from fuse.app.config import compose
from fuse.app.terms import Models
from fuse.registry import METHODS

FILE = REALBED / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
SECONDARIES = {
    "clip": ["secondary=[demo_clip]"],
    "minilm": ["secondary=[sentence]", 'target="two dogs play in the snow"', "image=null"],
}
FEW = ["steps=2"]
CHAT = [
    "secondary=[]",
    "image=null",
    'primary.template="chat"',
    'init="What is the capital of France?"',
    'label="The capital of France is Paris."',
]

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not FILE.is_file(), reason=f"{FILE} is absent"),
]

Find = Callable[..., Result]


@pytest.fixture(scope="module")
def find() -> Find:
    models: Models = {}

    def find(*overrides: str) -> Result:
        start = ["primary=causal_lm", f"primary.model_id={FILE}"]
        return build(compose([*start, *overrides]), models=models).run()

    return find


@pytest.fixture(scope="module")
def plain() -> Callable[[Result, int], float]:
    """The mean of -log p over the last tokens of what the primary read, by transformers alone."""
    network = AutoModelForCausalLM.from_pretrained(
        FILE.parent, gguf_file=FILE.name, dtype=torch.float32, trust_remote_code=False
    )

    @torch.no_grad()
    def mean(result: Result, count: int) -> float:
        ids = torch.tensor([result.terms["primary"].ids])
        log_probs = network(ids).logits[0, :-1].log_softmax(-1)
        own = log_probs.gather(1, ids[0, 1:, None])[-count:]
        return -float(own.mean())

    return mean


@pytest.mark.parametrize("secondary", SECONDARIES)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "caption"])
def test_every_method(
    find: Find, plain: Callable[[Result, int], float], method: str, secondary: str
) -> None:
    width = [] if method == "pez" else ["method.search_width=8"]
    result = find(f"method={method}", *SECONDARIES[secondary], *FEW, *width)
    assert result.loss <= result.initial_loss + 1e-4
    nll = result.terms["primary"].loss
    assert nll == pytest.approx(plain(result, len(result.free_ids)), abs=1e-4)


def test_the_baseline_of_a_captioner(find: Find, plain: Callable[[Result, int], float]) -> None:
    result = find("method=caption", *SECONDARIES["clip"])
    nll = result.terms["primary"].loss
    assert nll == pytest.approx(plain(result, len(result.free_ids)), abs=1e-4)


@pytest.mark.parametrize("method", ["gcg", "random", "autodan"])
def test_a_label_after_a_chat_template(
    find: Find, plain: Callable[[Result, int], float], method: str
) -> None:
    result = find(f"method={method}", *CHAT, "steps=2", "method.search_width=8")
    label = find("method=gcg", *CHAT, "steps=0")
    assert result.loss <= label.loss
    count = 7  # The capital of France is Paris.
    assert result.loss == pytest.approx(plain(result, count), abs=1e-4)
