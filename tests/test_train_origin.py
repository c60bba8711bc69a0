"""A run that begins from a checkpoint takes over its parts and trains its core on."""

import runpy
from pathlib import Path

import pytest
import torch

from worldmodel.checkpoint import load
from worldmodel.cli import compose
from worldmodel.errors import UserError
from worldmodel.train.config import TrainConfig
from worldmodel.train.run import main

TOY = runpy.run_path(str(Path(__file__).with_name("train_toy.py")))


def run(store: Path, out: Path, *more: str) -> int:
    keys = [f"store={store}", f"out={out}", *TOY["TINY"], *more]
    return main(compose("train", keys, TrainConfig))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return TOY["write_store"](tmp_path_factory.mktemp("store") / "toy.zarr")


@pytest.fixture(scope="module")
def origin(store, tmp_path_factory) -> Path:
    """The folder of a trained checkpoint."""
    out = tmp_path_factory.mktemp("first")
    assert run(store, out, "core_loop.steps=3") == 0
    return out / "checkpoint"


def test_a_run_from_a_checkpoint_trains_its_core_on(store, origin, tmp_path):
    begun, still = load(str(origin)), "core_loop.lr=0"
    assert run(store, tmp_path / "still", f"init={origin}", still, "core_loop.steps=1") == 0
    assert run(store, tmp_path / "on", f"init={origin}", "core_loop.steps=3") == 0
    same, more = (load(str(tmp_path / name / "checkpoint")) for name in ("still", "on"))
    for name, value in begun.core.named_parameters():  # router biases move without a rate
        assert torch.equal(same.core.get_parameter(name), value), name
    assert any(
        not torch.equal(more.core.get_parameter(name), value)
        for name, value in begun.core.named_parameters()
    )
    for name, value in begun.encoder.state_dict().items():
        assert torch.equal(more.encoder.state_dict()[name], value), name
    assert more.tokenizer.to_json() == begun.tokenizer.to_json()
    assert more.details["training"]["init"] == origin.name


def test_the_window_may_change(store, origin, tmp_path):
    longer = load(str(origin)).core.config.window + 2
    keys = [f"init={origin}", f"model.window={longer}", "core_loop.steps=1"]
    assert run(store, tmp_path, *keys) == 0
    assert load(str(tmp_path / "checkpoint")).core.config.window == longer


def test_another_shape_names_both_values(store, origin, tmp_path):
    with pytest.raises(UserError, match=r"model\.depth=\d+, but this run asks for 3"):
        run(store, tmp_path, f"init={origin}", "model.depth=3", "stage=core")


def test_frames_of_another_size_are_refused(store, tmp_path):
    with pytest.raises(UserError, match="64x64 pixels, but the store has 16x16"):
        run(store, tmp_path, "init=doom-nano")


def test_an_unknown_checkpoint_is_refused(store, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        run(store, tmp_path, "init=nowhere")
