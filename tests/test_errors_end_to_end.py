"""What users get wrong, from the command line to the sentence that they read."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.checkpoint import Checkpoint, save
from worldmodel.cli import main
from worldmodel.datasets.store import EpisodeWriter
from worldmodel.encoders.rae import RAE, RAEConfig
from worldmodel.text import train_tokenizer
from worldmodel.transformer import Core, CoreConfig
from worldmodel.world import Episode, WorldSpec

SPEC = WorldSpec("toy", ActionTable((ActionRow("forward", "w", "go", dx=0.5),)), 16, 16)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a small store (train split only), a checkpoint, and other things."""
    folder = tmp_path_factory.mktemp("made")
    frames = np.zeros((9, 16, 16, 3), np.uint8)
    steps = np.zeros((8, 3), np.float32), np.zeros(8, np.uint16)
    info = {"seed": 0, "split": "train"}
    EpisodeWriter(folder / "toy.zarr", SPEC).write(Episode(frames, *steps, {}, (), info))
    tokenizer = train_tokenizer(["action: w"] * 9, 300)
    shape = {"width": 32, "depth": 1, "heads": 2, "kv_heads": 1, "hidden": 32, "experts": 4}
    core = Core(CoreConfig(tokenizer.vocab_size, (4, 4), latent_channels=4, merge=2, **shape))
    rae = RAE(RAEConfig(16, 4, 4, width=16, heads=2, encoder_depth=1, decoder_depth=1))
    starts = frames[None, :3], np.zeros((1, 2), np.int32)
    save(Checkpoint("tiny", core, rae, tokenizer, SPEC, *starts, 0.9, {}), folder / "tiny")
    save(Checkpoint("bad", core, rae, tokenizer, SPEC, *starts, 0.9, {}), folder / "bad")
    weights = folder / "bad" / "core.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (folder / "empty").mkdir()
    (folder / "file").write_text("not a store")
    (folder / "script.yaml").write_text("steps: 2\nevents:\n  - {at: 0, hold: x, for: 1}\n")
    (folder / "typo.yaml").write_text("stepz: 2\n")
    (folder / "good.yaml").write_text("steps: 2\nevents:\n  - {at: 0, hold: w, for: 1}\n")
    return folder


HEADLESS = ["play", "headless=true", "device=cpu"]

CASES = {
    "play: unknown checkpoint": (
        [*HEADLESS, "script=good.yaml", "checkpoint=nope"],
        ["no checkpoint 'nope'", "Known:"],
    ),
    "play: a folder that is none": (
        [*HEADLESS, "script=good.yaml", "checkpoint=empty"],
        ["'empty' is no checkpoint", "config.json"],
    ),
    "play: truncated weights": (
        [*HEADLESS, "script=good.yaml", "checkpoint=bad"],
        ["core.safetensors' is damaged", "sha256"],
    ),
    "play: headless without a script": (HEADLESS, ["headless=true needs script=FILE"]),
    "play: no such script": ([*HEADLESS, "script=none.yaml"], ["none.yaml"]),
    "play: a script with a typo": ([*HEADLESS, "script=typo.yaml"], ["stepz", "steps"]),
    "play: a key that the world lacks": (
        [*HEADLESS, "script=script.yaml", "checkpoint=tiny"],
        ["'x'", "Known: w"],
    ),
    "play: unknown device": (
        ["play", "headless=true", "script=good.yaml", "checkpoint=tiny", "device=gpu"],
        ["Unknown device 'gpu'", "cuda"],
    ),
    "play: unknown number type": (
        [*HEADLESS, "script=good.yaml", "checkpoint=tiny", "dtype=float8"],
        ["Unknown dtype 'float8'", "float32"],
    ),
    "play: no denoising": ([*HEADLESS, "denoise_steps=0", "script=good.yaml"], ["at least 1"]),
    "collect: unknown world": (["collect", "env=dom", "out=new.zarr"], ["'dom'", "'doom'?"]),
    "collect: unknown split": (["collect", "split=trian", "out=new.zarr"], ["trian", "train"]),
    "collect: unknown policy": (["collect", "policy=mixx", "out=new.zarr"], ["mixx", "mix"]),
    "collect: no workers": (["collect", "workers=0", "out=new.zarr"], ["workers"]),
    "collect: into a file": (["collect", "out=file"], ["file"]),
    "data: unknown command": (["data", "inof", "store=toy.zarr"], ["'inof'", "'info'?"]),
    "data: no store": (["data", "info", "store=none.zarr"], ["none.zarr"]),
    "data: a file": (["data", "info", "store=file"], ["file"]),
    "data: a folder that is none": (["data", "info", "store=empty"], ["empty"]),
    "train: unknown stage": (["train", "stage=ecoder"], ["'ecoder'", "'encoder'?"]),
    "train: no store": (["train", "store=none.zarr", "out=run"], ["none.zarr"]),
    "train: a file as its folder": (
        ["train", "store=toy.zarr", "out=file", "rae.size=16"],
        ["out=file"],
    ),
    "train: no earlier stage": (
        ["train", "store=toy.zarr", "out=run", "stage=decoder", "rae.size=16"],
        ["run stage=encoder first"],
    ),
    "train: no captions": (
        ["train", "store=toy.zarr", "out=run2", "stage=encoder", "rae.size=16", "rae.patch=4"],
        ["no captions"],
    ),
    "train: another frame size": (
        ["train", "store=toy.zarr", "out=run3", "stage=encoder"],
        ["rae.size"],
    ),
    "eval: unknown suite": (["eval", "suite=quik", "store=toy.zarr"], ["'quik'", "'quick'?"]),
    "eval: no store": (["eval", "store=none.zarr", "checkpoint=tiny"], ["none.zarr"]),
    "eval: no such split": (["eval", "store=toy.zarr", "checkpoint=tiny"], ["'val'"]),
    "eval: no checkpoint": (
        ["eval", "store=toy.zarr", "split=train", "horizon=2", "checkpoint=nope"],
        ["no checkpoint 'nope'"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_sentence_and_exit_code_2(made, monkeypatch, capfd, case):
    words, parts = CASES[case]
    monkeypatch.chdir(made)
    if words[0] == "train":
        monkeypatch.setattr("worldmodel.train.run.python_prose", lambda: ["plain english"])
    assert main(words) == 2
    told = capfd.readouterr().err.splitlines()[-1]
    assert told.startswith("worldmodel: ")
    assert "Traceback" not in told
    assert "Error" not in told, "no name of a Python exception"
    for part in parts:
        assert part in told, told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_told(made, monkeypatch, capfd):
    monkeypatch.chdir(made)
    words = ["play", "headless=true", "script=good.yaml", "checkpoint=tiny", "device=cuda"]
    assert main(words) == 2
    told = capfd.readouterr().err
    assert "device=cuda was asked for" in told
    assert "device=cpu" in told


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worldmodel.cli", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_in_a_real_process_there_is_no_traceback(made):
    done = run(*HEADLESS, "script=good.yaml", "checkpoint=bad", folder=made)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "core.safetensors' is damaged" in done.stderr.splitlines()[-1]


def test_the_same_command_without_the_mistake_works(made, tmp_path):
    """So that the refusals above are about the mistake and nothing else."""
    report = tmp_path / "report.json"
    done = run(*HEADLESS, "script=good.yaml", "checkpoint=tiny", f"report={report}", folder=made)
    assert done.returncode == 0, done.stderr
    told = json.loads(report.read_text())
    assert told["frames"] == 2
    assert told["device"] == "cpu"
