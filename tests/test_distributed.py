"""Two processes train what one would; states move between numbers of processes."""

import json
import re
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from worldmodel.checkpoint import load
from worldmodel.cli import compose
from worldmodel.train.config import TrainConfig
from worldmodel.train.run import main
from worldmodel.train.state import saved_states, step_of

TOY = Path(__file__).with_name("train_toy.py")
EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
CORE = {"shortcut_from": 1, "own_past_from": 2, "own_past": 0.5, "balance": 0.01}
ODD = {"experts": 5}  # with the shared ones 7 experts, which 2 processes cannot divide evenly
WATCH = {"every": 1, "validate_every": 5, "validate_batches": 3}
LOOP = {"steps": 5, "lr": 3e-3, "warmup": 2, "ema": 0.9, "save_every": 2}


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have torch and our code loaded already."""
    return runpy.run_path(str(TOY))["forkserver"]()


def run(processes, out: Path, ranks: int, **settings: Any) -> list[int]:
    """Train in `ranks` processes; returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(ranks):
        told = {"out": str(out), "rank": rank, "ranks": ranks, "port": port}
        told |= {"core": CORE, "shape": ODD, "watch": {"every": 1}, "bfloat16": True} | settings
        arguments = (str(TOY), {"SETTINGS": told}, "__main__")
        process = processes.Process(target=runpy.run_path, args=arguments)
        process.start()
        started.append(process)
    for process in started:
        process.join(120)
    return [process.exitcode for process in started]


def logged(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: name -> step -> value."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
        if not name.startswith(("speed/", "train/seconds"))
    }


def assert_same_weights(a: Path, b: Path, most: float) -> None:
    """Differences are at most `most` of how far the weights have moved.

    Muon's iteration is in bfloat16 where that is fast, which makes rounding visible.
    """
    ours, theirs = load_file(a / "result.safetensors"), load_file(b / "result.safetensors")
    assert ours.keys() == theirs.keys()
    start = runpy.run_path(str(TOY))["core_task"](shape=ODD).module.state_dict()
    moved = max((ours[name] - start[name]).abs().max().item() for name in ours)
    for name in ours:
        assert (ours[name] - theirs[name]).abs().max().item() < most * moved, name


def assert_equal_results(a: Path, b: Path) -> None:
    ours, theirs = load_file(a / "result.safetensors"), load_file(b / "result.safetensors")
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture(scope="module")
def alone(processes, tmp_path_factory) -> Path:
    """One process that takes two batches a step."""
    out = tmp_path_factory.mktemp("alone")
    assert run(processes, out, 1, loop=LOOP | {"accumulate": 2}, watch=WATCH) == [0]
    return out


@pytest.fixture(scope="module")
def together(processes, tmp_path_factory) -> Path:
    """Two processes with divided weights."""
    out = tmp_path_factory.mktemp("together")
    assert run(processes, out, 2, loop=LOOP, watch=WATCH) == [0, 0]
    return out


def test_divided_weights_train_as_one_process_with_both_batches(alone, together):
    assert_same_weights(together, alone, 0.05)
    one, two = logged(alone), logged(together)
    assert one.keys() == two.keys()
    assert {"loss", "train/grad_norm", "grad/blocks", "router/0/busiest_vision"} <= one.keys()
    assert {"val/loss", "val/flow/action"} <= one.keys()
    for name in one:
        assert two[name] == pytest.approx(one[name], rel=2e-3, abs=1e-4), name
    assert not (together / "state.safetensors").exists()
    assert [step_of(path) for path in saved_states(together)] == [5, 4]


def test_whole_weights_and_adam_train_as_one_process_too(processes, tmp_path):
    loop = LOOP | {"muon": False, "save_every": 5}
    core = CORE | {"centre": True}
    assert run(processes, tmp_path / "a", 1, loop=loop | {"accumulate": 2}, core=core) == [0]
    assert run(processes, tmp_path / "b", 2, loop=loop, core=core, divide=False) == [0, 0]
    assert_same_weights(tmp_path / "a", tmp_path / "b", 1e-3)
    states = [load_file(tmp_path / name / "state.safetensors") for name in "ab"]
    assert states[0].keys() == states[1].keys()
    centres = [state["task/centre"].item() for state in states]
    assert centres[0] > 0
    assert centres[1] == pytest.approx(centres[0], rel=1e-4)


def test_a_state_of_two_processes_goes_on_in_one_and_back(processes, tmp_path, alone):
    stop = LOOP | {"stop_at": 2}
    assert run(processes, tmp_path, 2, loop=stop) == [0, 0]
    assert run(processes, tmp_path, 1, loop=LOOP | {"stop_at": 4, "accumulate": 2}) == [0]
    assert [step_of(path) for path in saved_states(tmp_path)] == [4, 2]
    assert run(processes, tmp_path, 2, loop=LOOP) == [0, 0]
    assert [step_of(path) for path in saved_states(tmp_path)] == [5, 4]
    assert_same_weights(tmp_path, alone, 0.05)


def test_two_processes_that_were_stopped_and_validated_equal_two_that_were_not(
    processes, tmp_path, together
):
    loop, watch = LOOP | {"async_save": True}, WATCH | {"validate_every": 2}
    for stop in (3, 0):
        assert run(processes, tmp_path, 2, loop=loop | {"stop_at": stop}, watch=watch) == [0, 0]
    assert_equal_results(tmp_path, together)
    found, want = logged(tmp_path), logged(together)
    assert list(found["val/loss"]) == [2, 3, 4, 5], "every second, and where it stopped"
    for name in want:
        assert want[name] == {step: found[name][step] for step in want[name]}


def test_computing_activations_again_changes_nothing(processes, tmp_path, together):
    loop = LOOP | {"checkpointing": True, "async_save": True}
    assert run(processes, tmp_path, 2, loop=loop, watch=WATCH) == [0, 0]
    assert_equal_results(tmp_path, together)
    assert logged(tmp_path) == logged(together)


def test_bad_data_in_one_process_stop_both(processes, tmp_path):
    assert run(processes, tmp_path, 2, loop=LOOP, bad_latent=5) == [2, 2]
    printed = [(tmp_path / f"printed-{rank}.txt").read_text() for rank in (0, 1)]
    assert any("'latents' of the batch is not finite" in text for text in printed)
    assert all("not finite at step" in text for text in printed)
    for rank, text in enumerate(printed):  # what torchrun puts at the end of its report
        told = json.loads((tmp_path / f"error-{rank}.json").read_text())
        assert f"worldmodel: {told['message']}" in text


def test_torchrun_trains_all_stages_and_one_process_exports(tmp_path):
    toy = runpy.run_path(str(TOY))
    store = toy["write_store"](tmp_path / "toy.zarr")
    settings = [f"store={store}", "out=run", *toy["TINY"], "core_loop.steps=4"]
    settings += ["watch.validate_every=4", "watch.images_every=4", "watch.images=2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc_per_node=2", "-m", "worldmodel", "train", *settings],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes") == 1, "only the first process speaks"
    core = tmp_path / "run" / "core"
    assert "val/flow" in logged(core)
    picture = np.asarray(Image.open(core / "pictures" / "00000004.png"))
    assert picture.shape == (2 * 16, (2 + 8) * 16 + 2, 3), "the store has one episode of val"
    first = (tmp_path / "run" / "checkpoint" / "core.safetensors").read_bytes()

    shutil.rmtree(tmp_path / "run" / "checkpoint")
    config = compose("train", [*settings, f"out={tmp_path / 'run'}", "stage=export"], TrainConfig)
    assert main(config) == 0
    exported = load(str(tmp_path / "run" / "checkpoint"))
    assert (tmp_path / "run" / "checkpoint" / "core.safetensors").read_bytes() == first
    trained = load_file(tmp_path / "run" / "core.safetensors")
    for name, value in exported.core.state_dict().items():
        assert torch.equal(value, trained[name].half().float()), name


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("train_*.sh")), ids=lambda p: p.stem)
def test_the_example_scripts_are_bash_and_their_settings_exist(path):
    assert subprocess.run(["bash", "-n", path], timeout=10).returncode == 0
    text = path.read_text()
    settings = re.search(r"settings=\((.*?)\)", text, re.DOTALL)
    assert settings is not None
    config = compose("train", settings.group(1).split(), TrainConfig)
    assert config.core_loop.async_save
    assert "-m worldmodel train" in text
