"""Fitted adapters on disk: found again, shared, measured where needed, never misleading."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from worlds import LinearModel, SumLoss, greedy_tokenizer, letters, vocabulary

import fuse
from fuse.adapters import ADAPTERS, Adapter, FuseAdapter, SemanticAdapter
from fuse.adapters.corpus import corpus_words
from fuse.adapters.fidelity import Fidelity, mean_fidelity
from fuse.adapters.store import load_or_fit

WORDS = "a b c d ab ba cab dad abcd abcda " * 3
RANKING = [name for name, kind in ADAPTERS.items() if kind.ranks]


class World:
    """A small pair of models, a folder for its adapters, and a count of the fits."""

    def __init__(self, kind: type[Adapter], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kind, self.folder = kind, folder
        self.source = vocabulary(greedy_tokenizer([*letters(4), "ab", "##ab"]), 4, seed=1)
        self.model = LinearModel(greedy_tokenizer(letters(4), "<s>", "</s>"), 5, seed=2)
        self.term = fuse.Term(self.model, SumLoss())
        self.corpus = folder / "corpus.txt"
        self.corpus.write_text(WORDS)
        self.fits = 0
        fit = kind.fit.__func__  # type: ignore[attr-defined]

        def counted(cls: type[Adapter], *args: Any, **options: Any) -> Adapter:
            self.fits += 1
            return fit(cls, *args, **options)

        monkeypatch.setattr(kind, "fit", classmethod(counted))

    def get(self, folder: str = "own", **options: Any) -> Adapter:
        options = {"corpus": str(self.corpus), **options}
        place = {"folder": self.folder / folder, "name": "x"}
        return load_or_fit(self.kind, self.source, self.model, **place, **options)

    def path(self, folder: str = "own") -> Path:
        (path,) = (self.folder / folder).iterdir()
        return path

    def read(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        with safe_open(self.path(), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata()

    def works(self, adapter: Adapter) -> bool:
        """Whether an adapter scores tokens, proposes and covers without an error."""
        row = self.source.encode(["ab cab d"])[0][0]
        positions = list(range(len(row)))
        scores = adapter.token_scores([row] * len(row), positions, self.term)
        adapter.embedding_gradient([row] * len(row), positions, self.term)
        adapter.proposals([row], [0], self.term, 3)
        adapter.fit_errors(["ab", "cab"])
        covered = adapter.covers(["ab", "cab"])
        right = scores.shape == (len(row), len(self.source)) and bool(scores.isfinite().all())
        return right and len(covered) == 2


@pytest.fixture(params=ADAPTERS)
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(ADAPTERS[request.param], tmp_path, monkeypatch)


@pytest.fixture(params=RANKING)
def ranking_world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> World:
    return World(ADAPTERS[request.param], tmp_path, monkeypatch)


def equal(a: Adapter, b: Adapter) -> bool:
    tensors, others = a.tensors(), b.tensors()
    same = all(torch.equal(tensors[name], others[name]) for name in tensors)
    return set(tensors) == set(others) and same


def test_an_adapter_is_found_again_and_bad_files_are_refitted(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    first, again = world.get(), world.get()
    assert world.fits == 1
    assert equal(first, again)
    path = world.path()
    for damage in (b"", b"not a safetensors file", path.read_bytes()[:-8]):
        path.write_bytes(damage)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="fuse"):
            assert equal(first, world.get())
        assert len(caplog.records) == 1 and "fitting the adapter anew" in caplog.text
    assert world.fits == 4
    world.get(
        settings={"max_subtokens": 2}
    )  # another setting, another corpus: never the stale file
    world.corpus.write_text("ab dab\n")
    world.get()
    assert world.fits == 6
    assert not list((world.folder / "own").glob("*.partial"))


NOT_NUMBERS = [torch.nan, torch.inf]


def damaged_tensors(tensors: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield what a file may hold in place of its tensors, with a description."""
    yield "more", {**tensors, "more": torch.zeros(2)}
    if tensors:
        yield "nothing", {}
    for name, value in tensors.items():
        others = {other: kept for other, kept in tensors.items() if other != name}
        yield f"no {name}", others
        for wrong in ("1xa", "-1x2", "0x1", "1x2x3", " 1x1", "1_0x1", "x", "\u0661x1", "9x9"):
            yield f"{name} is called {wrong}", {**others, wrong: value}
        for dtype in (torch.bool, torch.complex64, torch.int64, torch.float64, torch.uint8):
            if dtype.is_floating_point != value.is_floating_point() or dtype == torch.bool:
                yield f"{name} in {dtype}", {**others, name: value.to(dtype)}
        for shape in ((0,), (0, 0), (0, 0, 0), (), (3,), (1, 1), (2, 3, 4), (0, 5), (7, 0)):
            if shape != value.shape:
                empty = torch.zeros(shape, dtype=value.dtype)
                yield f"{name} in shape {shape}", {**others, name: empty}
        flat = value.flatten()
        yield f"{name} cut", {**others, name: flat[:-1]}
        yield f"{name} longer", {**others, name: torch.cat([flat, flat[:1]])}
        odd = [*NOT_NUMBERS, 1e300] if value.is_floating_point() else [-1, -(2**31), 2**31 - 1]
        for number in odd:
            double = torch.float64 if number == 1e300 else value.dtype
            changed = value.clone().to(double)
            changed.view(-1)[0] = number
            yield f"{name} with {number}", {**others, name: changed}


def test_a_damaged_file_is_one_warning_and_a_refit(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    first = world.get()
    tensors, metadata = world.read()
    for what, damaged in damaged_tensors(tensors):
        save_file({k: v.contiguous() for k, v in damaged.items()}, world.path(), metadata=metadata)
        caplog.clear()
        before = world.fits
        with caplog.at_level(logging.WARNING, logger="fuse"):
            again = world.get()
        assert equal(first, again), what
        assert world.fits == before + 1, what
        assert len(caplog.records) == 1, (what, caplog.text)
        assert "\n" not in caplog.records[0].getMessage()
    assert world.works(first)


def test_a_file_that_is_too_large_is_not_read(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fuse.adapters.checks as checks
    import fuse.adapters.store as store

    first, path = world.get(), world.path()
    content = path.read_bytes()
    path.write_bytes((10**10).to_bytes(8, "little") + content[8:])  # claims a header of 10 GB
    assert equal(first, world.get())
    with monkeypatch.context() as patch:
        patch.setattr(store, "MAX_BYTES", 10)
        assert equal(first, world.get())
        assert "more than 10 bytes" in caplog.text
    for name in ("MAX_WORDS", "MAX_SUBTOKENS"):
        monkeypatch.setattr(checks, name, 0)
    caplog.clear()
    assert equal(first, world.get())
    assert ("too many numbers for this pair" in caplog.text) == bool(first.tensors())
    assert len(caplog.records) == bool(first.tensors())


@pytest.mark.parametrize(
    "fidelity",
    ["", "{", "[]", "{}", "3", '{"spearman": "x"}', '{"spearman": 1e999}', "[" * 100_000, "null"],
)
def test_a_damaged_fidelity_is_one_warning_and_a_refit(
    ranking_world: World, caplog: pytest.LogCaptureFixture, fidelity: str
) -> None:
    first = ranking_world.get()
    tensors, metadata = ranking_world.read()
    save_file(tensors, ranking_world.path(), metadata={**metadata, "fidelity": fidelity})
    with caplog.at_level(logging.WARNING, logger="fuse"):
        assert equal(first, ranking_world.get())
    assert ranking_world.fits == 2 and len(caplog.records) == 1


DTYPES = [torch.float16, torch.float32, torch.float64, torch.uint8, torch.int32, torch.int64]


@st.composite
def odd_tensors(draw: Callable[..., Any]) -> Tensor:
    shape = draw(st.lists(st.integers(0, 6), max_size=4))
    number = draw(st.sampled_from([0, 1, 2, 5, 200, float("nan"), -1]))
    value = torch.full(shape, number, dtype=torch.float64)
    if number != number:
        return value.to(draw(st.sampled_from(DTYPES[:3])))
    return value.to(draw(st.sampled_from(DTYPES)))


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_whatever_a_file_holds_the_adapter_works(world: World, data: st.DataObject) -> None:
    """Some tensors are replaced, or some bytes of the file; then it loads, or is fitted again."""
    world.get()
    tensors, metadata = world.read()
    names = [*tensors, "1x1", "2x1", "vectors"]
    if data.draw(st.booleans()):
        changes = data.draw(st.dictionaries(st.sampled_from(names), odd_tensors(), max_size=2))
        save_file({**tensors, **changes}, world.path(), metadata=metadata)
    else:
        content = bytearray(world.path().read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        world.path().write_bytes(bytes(content))
    assert world.works(world.get())


def test_a_corpus_out_of_reach_gives_the_vocabularies_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fuse.adapters.corpus as corpus

    def unreachable(_: str) -> list[str]:
        raise ConnectionError("no network")

    world = World(FuseAdapter, tmp_path, monkeypatch)
    monkeypatch.setattr(corpus, "_dataset_texts", unreachable)
    with caplog.at_level(logging.WARNING, logger="fuse"):
        adapter = world.get(corpus="some/dataset")
    assert len(caplog.records) == 1
    assert isinstance(adapter, FuseAdapter) and adapter.jacobians
    assert equal(adapter, world.get(corpus=None)) and world.fits == 1
    with pytest.raises(fuse.FuseError, match="no such file"):
        world.get(corpus="missing.txt")


def numbered(adapter: Adapter, point: str) -> Fidelity:
    """A fidelity that differs from point to point."""
    number = {"current": 0.25, "mean": 0.5, "mask": 0.75}[point]
    return Fidelity(number, number, number)


def test_fidelity_is_measured_once_at_each_point(ranking_world: World) -> None:
    asked: list[str] = []

    def measure(adapter: Adapter, point: str) -> Fidelity:
        asked.append(point)
        return numbered(adapter, point)

    world = ranking_world
    about = {"measure": measure, "description": {"primary": "an LM"}}
    assert world.get(**about).fidelity == numbered(world.get(), "current")
    for _ in range(2):
        assert world.get(**about, points=("mean",)).fidelity == numbered(world.get(), "mean")
    both = world.get(**about, points=("mean", "mask"))
    expected = [numbered(both, "mean"), numbered(both, "mask")]
    assert both.fidelity == mean_fidelity(expected)
    assert asked == ["current", "mean", "mask"] and world.fits == 1
    metadata = world.read()[1]
    assert metadata["primary"] == "an LM" and metadata["adapter"] == world.kind.__name__
    for name, point in (("fidelity", "current"), ("fidelity_mean", "mean")):
        assert Fidelity(**json.loads(metadata[name])) == numbered(both, point)
    assert "fidelity_current" not in metadata and "fidelity_mask" in metadata


def test_a_file_of_an_earlier_version_is_measured_at_the_points_that_it_lacks(
    ranking_world: World,
) -> None:
    world = ranking_world
    first = world.get()
    tensors, metadata = world.read()
    old = {**metadata, "fidelity": json.dumps(vars(numbered(first, "current")))}
    save_file(tensors, world.path(), metadata=old)
    again = world.get(measure=numbered, points=("mask",))
    assert again.fidelity == numbered(again, "mask") and equal(first, again)
    assert world.fits == 1 and "fidelity_mask" in world.read()[1]


def test_a_fidelity_that_cannot_be_kept_is_a_warning(
    ranking_world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fuse.adapters.store as store

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    world = ranking_world
    world.get()
    content = world.path().read_bytes()
    monkeypatch.setattr(store, "save_file", full)
    with caplog.at_level(logging.WARNING, logger="fuse"):
        again = world.get(measure=numbered, points=("mean",))
    assert again.fidelity == numbered(again, "mean")
    assert len(caplog.records) == 1 and "no space left" in caplog.text
    assert world.path().read_bytes() == content


def test_nothing_is_measured_of_an_adapter_that_does_not_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(ADAPTERS["pooled"], tmp_path, monkeypatch)
    for _ in range(2):
        assert world.get(measure=numbered, points=("mean",)).fidelity is None
    assert not any(name.startswith("fidelity") for name in world.read()[1])


def test_measured_fidelity_is_that_of_the_point(ranking_world: World) -> None:
    """The adapter's own `measure`, at two points where the losses differ."""
    world, texts = ranking_world, ["ab c dab", "d cab a"]

    def measure(adapter: Adapter, point: str) -> Fidelity | None:
        generator = torch.Generator().manual_seed(0)
        return adapter.measure(world.term, texts, generator, point=point)

    adapter = world.get(measure=measure, points=("current", "mean"))
    assert adapter.fidelities == world.get(points=("current", "mean")).fidelities
    for point, fidelity in adapter.fidelities.items():
        assert fidelity == measure(adapter, point)


def test_shared_adapters_are_not_fitted_again(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.get("shared")
    shared = {"shared": str(world.folder / "shared")}
    content = world.path("shared").read_bytes()
    assert equal(first, world.get("own", **shared)) and world.fits == 1
    assert not (world.folder / "own").exists()
    # What is measured is kept in the own folder
    measured = world.get("own", **shared, measure=numbered, points=("mean",))
    assert equal(first, measured) and world.fits == 1
    assert world.path("shared").read_bytes() == content
    assert (world.folder / "own").exists() == world.kind.ranks

    def unreachable(*_: str) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with caplog.at_level(logging.WARNING, logger="fuse"):
        world.get("another", shared="somebody/adapters")
    assert "adapter.shared=somebody/adapters" in caplog.text


def test_shipped_files_are_found_and_are_what_a_fit_gives(
    lm: fuse.CausalLM, clip: fuse.CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(fuse.__file__).parent.parent

    def get(folder: Path) -> Adapter:
        name = "demo-lm--demo-clip--semantic"
        return load_or_fit(SemanticAdapter, lm.vocabulary, clip, folder=folder, name=name)

    with monkeypatch.context() as patch:
        patch.setattr(SemanticAdapter, "fit", None)
        shipped = get(root / "gradients")
    fitted = get(tmp_path)
    assert isinstance(shipped, SemanticAdapter) and isinstance(fitted, SemanticAdapter)
    assert shipped.words == fitted.words and shipped.fidelity is not None
    assert torch.equal(shipped.tensors()["pieces"], fitted.tensors()["pieces"])
    torch.testing.assert_close(shipped.vectors, fitted.vectors, atol=1e-3, rtol=1e-3)


def test_processes_that_fit_at_once_leave_one_good_file(
    tmp_path: Path, lm: fuse.CausalLM, clip: fuse.CLIP
) -> None:
    words = corpus_words("fuse/demo/corpus.txt") or []
    (tmp_path / "corpus.txt").write_text(" ".join(words[:500]))
    options = {"folder": tmp_path / "own", "name": "x", "corpus": str(tmp_path / "corpus.txt")}

    def get(_: int) -> Adapter:
        return load_or_fit(FuseAdapter, lm.vocabulary, clip, **options)  # type: ignore[arg-type]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(get, range(4)))
    (path,) = (tmp_path / "own").iterdir()
    assert path.suffix == ".safetensors"
    assert equal(get(0), found[0])
