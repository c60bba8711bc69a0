"""A run goes on after kill -9 as if nothing had happened; a damaged state costs one state only."""

import os
import random
import runpy
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from worldmodel.errors import UserError
from worldmodel.train.loop import LoopConfig, fit
from worldmodel.train.state import saved_states, step_of
from worldmodel.train.watch import Watch

TOY = Path(__file__).with_name("train_toy.py")
STEPS = 24
LOOP = {"steps": STEPS, "lr": 3e-3, "warmup": 5, "ema": 0.9, "save_every": 3}
TRAIN_TOY = runpy.run_path(str(TOY))
core_task = TRAIN_TOY["core_task"]


@pytest.fixture(scope="module")
def start():
    """Starts a process that trains; torch and our code are loaded in it already."""
    context = TRAIN_TOY["forkserver"]()

    def run(out: Path, **settings: Any) -> Any:
        told = {"out": str(out), "watch": {"every": 1}} | settings
        arguments = (str(TOY), {"SETTINGS": told}, "__main__")
        process = context.Process(target=runpy.run_path, args=arguments)
        process.start()
        return process

    return run


def logged(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: name -> step -> value."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
        if not name.startswith(("speed/", "train/seconds"))
    }


def loop(steps: int, **changes: Any) -> LoopConfig:
    return LoopConfig(**(LOOP | {"steps": steps} | changes))


def wait_for_step(folder: Path, step: int, process: Any) -> int:
    """Wait until a state of that step or a later one is there; returns its step."""
    while True:
        try:
            newest = step_of(saved_states(folder)[0])
            if newest >= step:
                return newest
        except (IndexError, OSError, ValueError):
            pass
        assert process.is_alive(), "it ended before it could be killed"
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("loop", "core"),
    [
        ({}, {"workers": 0}),
        ({"accumulate": 2}, {"workers": 2, "centre": True}),
        ({"muon": False, "async_save": True, "checkpointing": True}, {"workers": 2}),
    ],
    ids=["muon", "accumulation-workers-centring", "adam-async-checkpointing"],
)
def test_a_run_killed_at_random_steps_equals_an_unbroken_one(start, tmp_path, loop, core):
    settings = {"loop": LOOP | loop, "core": {"shortcut_from": 4, "own_past_from": 8} | core}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    unbroken = start(whole, **settings)
    unbroken.join(120)
    assert unbroken.exitcode == 0

    chance = random.Random(time.time())
    reached = 0
    for _ in range(2):
        process = start(broken, **settings)
        reached = wait_for_step(broken, reached + 1, process)
        time.sleep(chance.uniform(0, 0.15))  # somewhere in the steps that follow
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        if process.exitcode == 0:
            break  # it was faster
        assert process.exitcode == -signal.SIGKILL
        assert step_of(saved_states(broken)[0]) <= STEPS
    last = start(broken, **settings)
    last.join(120)
    assert last.exitcode == 0

    ours, theirs = (load_file(folder / "result.safetensors") for folder in (whole, broken))
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert logged(whole) == logged(broken)
    if not loop.get("async_save"):
        name = "state.safetensors"
        assert (whole / name).read_bytes() == (broken / name).read_bytes()


# --- damage ---


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run with states of the steps 3 and 6 in one file each."""
    folder = tmp_path_factory.mktemp("stopped")
    fit(core_task(), loop(9, stop_at=6), folder)
    return folder


def spoil(path: Path) -> None:
    target = path if path.is_file() else next(path.glob("*.safetensors"))
    target.write_bytes(target.read_bytes()[:100])


def test_a_damaged_newest_state_falls_back_to_the_one_before(stopped, tmp_path, capsys):
    shutil.copytree(stopped, tmp_path / "a")
    shutil.copytree(stopped, tmp_path / "b")
    assert [step_of(p) for p in saved_states(tmp_path / "a")] == [6, 3]
    spoil(tmp_path / "a" / "state.safetensors")
    fit(core_task(), loop(9), tmp_path / "a")
    fit(core_task(), loop(9), tmp_path / "b")
    printed = capsys.readouterr().out
    assert "state.safetensors' is damaged" in printed
    assert "going on from step 3" in printed
    ours, theirs = (load_file(tmp_path / name / "state.safetensors") for name in "ab")
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_missing_newest_state_is_the_kill_between_two_renames(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "a")
    (tmp_path / "a" / "state.safetensors").unlink()
    (tmp_path / "a" / "state.safetensors.tmp").write_bytes(b"half")
    fit(core_task(), loop(9), tmp_path / "a")
    assert [step_of(p) for p in saved_states(tmp_path / "a")] == [9, 6]


def test_two_damaged_states_are_refused_by_name(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "a")
    for path in saved_states(tmp_path / "a"):
        spoil(path)
    with pytest.raises(UserError, match=r"state\.safetensors' cannot be resumed") as caught:
        fit(core_task(), loop(9), tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_a_damaged_folder_of_parts_falls_back_too(tmp_path, capsys):
    fit(core_task(), loop(9, stop_at=6, async_save=True), tmp_path)
    newest, before = saved_states(tmp_path)
    assert (step_of(newest), step_of(before)) == (6, 3)
    spoil(newest)
    (tmp_path / "state-00000008").mkdir()  # a kill left it without its last file
    fit(core_task(), loop(9, async_save=True), tmp_path)
    assert "going on from step 3" in capsys.readouterr().out
    assert [step_of(p) for p in saved_states(tmp_path)] == [9, 6]
    assert sorted(p.name for p in tmp_path.glob("state-*")) == ["state-00000006", "state-00000009"]


def test_a_state_of_another_model_is_refused_and_kept(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "a")
    before = (tmp_path / "a" / "state.safetensors").read_bytes()
    for other in ({"width": 48}, {"depth": 1}, {"ffn": "dense"}):
        with pytest.raises(UserError, match="cannot be resumed"):
            fit(core_task(shape=other), loop(9), tmp_path / "a")
    with pytest.raises(UserError, match="another optimiser"):
        fit(core_task(), loop(9, muon=False), tmp_path / "a")
    assert (tmp_path / "a" / "state.safetensors").read_bytes() == before


def test_a_state_that_cannot_be_written_is_told(tmp_path):
    fit(core_task(), loop(3, stop_at=1), tmp_path)
    (tmp_path / "state.safetensors.tmp").mkdir()
    with pytest.raises(UserError, match="The state cannot be written"):
        fit(core_task(), loop(3, stop_at=2), tmp_path)


# --- what is looked at on the way ---


def test_validation_changes_nothing_and_repeats_itself(tmp_path):
    toy = runpy.run_path(str(TOY))
    settings = {"shortcut_from": 2, "own_past_from": 4, "centre": True}
    plain = toy["core_task"](**settings)
    fit(plain, loop(6), tmp_path / "plain", Watch(every=1))
    watched = toy["core_task"](**settings)
    held_out = toy["validation_of"](watched)
    watch = Watch(every=1, validate_every=2, validate_batches=3)
    fit(watched, loop(6), tmp_path / "watched", watch, validation=held_out)
    states = [(tmp_path / name / "state.safetensors").read_bytes() for name in ("plain", "watched")]
    assert states[0] == states[1]
    without, found = logged(tmp_path / "plain"), logged(tmp_path / "watched")
    held = {name: values for name, values in found.items() if name.startswith("val/")}
    assert {"val/loss", "val/flow", "val/text", "val/text/action"} <= held.keys()
    assert list(held["val/loss"]) == [2, 4, 6]
    assert without == {name: values for name, values in found.items() if name not in held}
    # The averaged weights are what is validated.
    rows = [held_out.losses(0, batch)["loss"].item() for batch in range(3)]
    assert held["val/loss"][6] == pytest.approx(sum(rows) / 3, rel=1e-5)
