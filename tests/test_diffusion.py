"""Diffusion models: their loss is that of diffusers' own parts, and a search lowers it."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import command_line
import pytest
import torch
from checkpoints.diffusion import denoising_error, noisy_versions, pipeline
from conftest import ROOT

import fuse
from fuse import DenoisingError, Diffusion, FuseError, Term, hub
from fuse.app.build import build
from fuse.app.config import compose
from fuse.app.plan import plan_of
from fuse.nn.batch import pad
from fuse.text.template import Template

diffusers = pytest.importorskip("diffusers", reason="diffusers comes with the extra `test`")

TEXTS = ["a red house", "two dogs play in the snow by the sea", ""]
IMAGE = fuse.open_image(ROOT / "images/boat.png")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("diffusion") / "tiny"
    pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def model(folder: Path) -> Diffusion:
    return Diffusion.load(str(folder))


@torch.no_grad()
def own_losses(pipe: Any, levels: list[int], seed: int, samples: int = 1) -> list[float]:
    """Return the loss of each text, by the pipeline's own parts, one pass each."""
    versions, found = noisy_versions(pipe, IMAGE, levels, seed, samples), []
    for text in TEXTS:
        states, _ = pipe.encode_prompt(text, "cpu", 1, False)
        found.append(float(denoising_error(pipe, states, versions)))
    return found


def term(model: Diffusion, **options: Any) -> Term:
    return Term(model, DenoisingError(model.noisy_picture(IMAGE, **options)))


@pytest.mark.parametrize(
    ("scheduler", "kind", "masked"),
    [
        ("PNDMScheduler", "epsilon", False),
        ("DDIMScheduler", "v_prediction", False),
        ("EulerDiscreteScheduler", "sample", True),
    ],
)
def test_the_loss_is_that_of_the_pipelines_own_parts(
    scheduler: str, kind: str, masked: bool
) -> None:
    pipe = pipeline(scheduler, masked=masked, prediction_type=kind)
    scored = term(Diffusion(pipe), timesteps=4, noise_samples=2, seed=3)
    expected = own_losses(pipe, [125, 375, 625, 875], seed=3, samples=2)
    assert max(expected) - min(expected) > 1e-3
    rows = scored.encode(TEXTS)
    assert scored.score(rows).tolist() == pytest.approx(expected, abs=1e-5)
    alone = []
    for row in rows:
        scored.clear()
        alone += scored.score([row]).tolist()
    assert alone == pytest.approx(expected, abs=1e-5)


def test_a_folder_gives_the_loss_of_its_pipeline(folder: Path, model: Diffusion) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    expected = own_losses(pipe, [62, 187, 312, 437, 562, 687, 812, 937], seed=0)
    scored = term(model)
    assert scored.score(scored.encode(TEXTS)).tolist() == pytest.approx(expected, abs=1e-5)
    half = term(Diffusion.load(str(folder), dtype=torch.bfloat16))
    assert half.score(half.encode(TEXTS)).tolist() == pytest.approx(expected, abs=0.1)


def test_the_same_seed_gives_the_same_loss(model: Diffusion) -> None:
    first, again, other = (term(model, timesteps=2, seed=seed) for seed in (5, 5, 6))
    rows = first.encode(TEXTS)
    assert torch.equal(first.score(rows), again.score(rows))
    assert not torch.equal(first.score(rows), other.score(rows))


def test_the_gradient_by_embeddings_equals_finite_differences(
    generator: torch.Generator,
) -> None:
    model = Diffusion(pipeline())
    assert model.no_gradient is None
    picture = model.noisy_picture(IMAGE, timesteps=2)
    model.network.double()
    model.vocabulary.embedding = model.vocabulary.embedding.double()
    inputs = pad(Template().encode(model.vocabulary, TEXTS[:2]), model.device)

    def value(embeddings: torch.Tensor) -> torch.Tensor:
        return DenoisingError(picture)(model, replace(inputs, embeddings=embeddings)).sum()

    base = model.vocabulary.embedding[inputs.ids].requires_grad_()
    (found,) = torch.autograd.grad(value(base), base)
    plain = DenoisingError(picture)(model, inputs).sum()
    assert float(value(base.detach())) == pytest.approx(float(plain), abs=1e-9)
    for _ in range(3):
        way = torch.randn(base.shape, generator=generator).double()
        numeric = float(value(base.detach() + 1e-4 * way) - value(base.detach() - 1e-4 * way))
        assert float((found * way).sum()) == pytest.approx(numeric / 2e-4, rel=1e-4, abs=1e-9)


def options(folder: Path, cache: Path, *more: str) -> list[str]:
    lines = ["secondary=[diffusion]", f"secondary.diffusion.model_id={folder}"]
    lines += ["secondary.diffusion.timesteps=2", "image=images/boat.png", "adapter=lexical"]
    return [*lines, f"adapter.cache_dir={cache}", *more]


@pytest.mark.parametrize("method", ["gcg", pytest.param("autodan", marks=pytest.mark.full)])
def test_a_search_lowers_the_loss(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("fuse.app.build.NUM_TRIALS", 0)
    more = [f"method={method}", "method.search_width=12", "steps=3", "primary.weight=0"]
    search = build(compose(options(folder, tmp_path, *more, "secondary.diffusion.weight=1")))
    result = search.run()
    assert result.loss < result.initial_loss - 1e-4
    scored = term(search.objective.secondaries["diffusion"].model, timesteps=2)
    own = scored.score(scored.encode([result.prompt]))
    assert result.terms["diffusion"].loss == pytest.approx(float(own), abs=1e-5)


def test_a_gradient_goes_through_the_adapter(
    model: Diffusion, lm: fuse.CausalLM, house: torch.Tensor
) -> None:
    scored = term(model, timesteps=2)
    adapter = fuse.LexicalAdapter.fit(lm.vocabulary, model)
    rows = [ids for ids, _ in lm.vocabulary.encode([" a red house in the snow"])]
    scores = adapter.token_scores(rows, [2], scored)
    assert scores.isfinite().all() and float(scores.std()) > 0


def test_its_own_tokens_are_searched_without_an_adapter(folder: Path) -> None:
    lines = ["primary=diffusion", f"primary.model_id={folder}", "primary.timesteps=2"]
    search = build(compose([*lines, "image=images/boat.png", "method=pez", "steps=5"]))
    result = search.run()
    assert result.loss < result.initial_loss


@pytest.mark.full
def test_the_command_runs_it(folder: Path, tmp_path: Path) -> None:
    more = ["method=random", "method.search_width=4", "steps=1", "adapter=pooled"]
    out = command_line.find_prompt(
        *options(folder, tmp_path, *more), f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert out.returncode == 0, out.stderr
    assert "diffusion" in json.loads((tmp_path / "run/result.json").read_text())["terms"]


def test_a_plan_tells_how_large_it_is(folder: Path, model: Diffusion, tmp_path: Path) -> None:
    plan = plan_of(compose(options(folder, tmp_path)))
    (found,) = [one for one in plan.models if one.key == "secondary.diffusion"]
    assert found.num_weights == sum(w.numel() for w in model.network.parameters())


def changed(folder: Path, copy: Path, name: str, **values: Any) -> str:
    """Copy a folder, and change entries of one of its JSON files."""
    shutil.copytree(folder, copy)
    content = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps({**content, **values}))
    return str(copy)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        (
            "model_index.json",
            {"_class_name": "StableDiffusionXLPipeline"},
            "StableDiffusionXLPipeline; expected a StableDiffusionPipeline.*one CLIP",
        ),
        ("model_index.json", {"vae": ["os", "system"]}, "vae=.*expected AutoencoderKL"),
        ("model_index.json", {"text_encoder": None}, "text_encoder=None, expected CLIPTextModel"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "flow.*v_prediction"),
        ("unet/config.json", {"in_channels": 9}, "conv_in|unet"),
        ("unet/config.json", {"cross_attention_dim": 48}, "unet|mat|shape|size"),
        ("unet/config.json", {"block_out_channels": [2**30, 64]}, "block_out_channels"),
    ],
)
def test_what_is_not_supported_is_one_line(
    folder: Path, tmp_path: Path, name: str, values: dict[str, Any], words: str
) -> None:
    place = changed(folder, tmp_path / "tiny", name, **values)
    with pytest.raises(FuseError, match=words) as raised:
        Diffusion.load(place).noisy_picture(IMAGE)
    assert "\n" not in str(raised.value)


def test_a_unet_that_reads_other_latents_is_one_line() -> None:
    pipe = pipeline()
    pipe.unet.conv_in = torch.nn.Conv2d(9, 32, 3, padding=1)
    with pytest.raises(FuseError, match=r"denoising error.*unet/config\.json") as raised:
        Diffusion(pipe).noisy_picture(IMAGE)
    assert "\n" not in str(raised.value)


def test_folders_of_another_kind_are_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FuseError, match=r"no model_index\.json; expected a StableDiff"):
        Diffusion.load(str(ROOT / "fuse/demo/clip"))
    with pytest.raises(FuseError, match="no such folder"):
        Diffusion.load(str(tmp_path / "nowhere"))
    with pytest.raises(FuseError, match="CLIPTextModel: expected a StableDiffusionPipeline"):
        Diffusion(pipeline().text_encoder)
    with pytest.raises(FuseError, match="quantization"):
        Diffusion.load(str(folder), quantization="int8")
    with pytest.raises(FuseError, match="timesteps=1001: expected a number from 1 to 1000"):
        Diffusion.load(str(folder)).noisy_picture(IMAGE, timesteps=1001)


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "tiny")
    weights = tmp_path / "tiny/unet/diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(FuseError, match="only safetensors are read"):
        Diffusion.load(str(tmp_path / "tiny"))


def test_a_scheduler_without_such_noise_is_refused() -> None:
    pipe = pipeline()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(FuseError, match="FlowMatchEulerDiscreteScheduler"):
        Diffusion(pipe)


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(FuseError, match=r"fuse-prompt\[diffusion\]"):
        Diffusion.load(str(folder))


def test_the_cache_holds_a_pipeline_with_all_its_networks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "tiny")

    def cached(repository: str, file: str, **options: Any) -> Path | None:
        path = tmp_path / "tiny" / file
        return path if path.is_file() else None

    monkeypatch.setattr(hub, "cached", cached)
    assert hub.is_here("some/pipeline")
    (tmp_path / "tiny/vae/diffusion_pytorch_model.safetensors").unlink()
    assert not hub.is_here("some/pipeline")
