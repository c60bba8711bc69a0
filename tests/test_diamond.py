"""DIAMOND as a peer. What needs its code runs if DIAMOND_CHECKOUT names a clone of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldmodel.actions import Action, ActionRow, ActionTable
from worldmodel.datasets.store import EpisodeStore, EpisodeWriter
from worldmodel.errors import UserError
from worldmodel.evaluate import diamond, diamond_train
from worldmodel.evaluate.diamond import ActionIndex, Diamond
from worldmodel.evaluate.imaginer import Imaginer, invite
from worldmodel.world import Episode, WorldSpec

SIZE = 16
TABLE = ActionTable(
    (
        ActionRow("forward", "w", "step forward", dx=0.5, phrases=("step forward",)),
        ActionRow("left", "a", "turn left", dyaw=11.0, unit="deg", phrases=("turn left",)),
        ActionRow("right", "d", "turn right", dyaw=-11.0, unit="deg", phrases=("turn right",)),
    )
)
SPEC = WorldSpec("tiny", TABLE, SIZE, SIZE)
MASKS = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    writer = EpisodeWriter(tmp_path_factory.mktemp("store") / "s.zarr", SPEC)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        frames = rng.integers(0, 256, (13, SIZE, SIZE, 3), dtype=np.uint8)
        keys = np.resize(np.array(MASKS, np.uint16), 12)
        info = {"split": "train", "seed": seed, "world": "x", "level_seed": seed, "policy": "x"}
        writer.write(Episode(frames, np.zeros((12, 3), np.float32), keys, {}, (), info))
    return EpisodeStore(writer.path)


@pytest.fixture(scope="module")
def checkout():
    if not os.environ.get("DIAMOND_CHECKOUT"):
        pytest.skip("DIAMOND_CHECKOUT names no clone of DIAMOND")
    return os.environ["DIAMOND_CHECKOUT"]


def test_combinations_of_keys_have_numbers_and_others_that_of_the_likest():
    index = ActionIndex(MASKS)
    assert [index[mask] for mask in MASKS] == [0, 1, 2, 3]
    assert index[0b111] == 3
    assert index[0b101] == 1
    assert index.of(TABLE, TABLE.press(["w", "a"])) == 3
    assert index.of(TABLE, Action()) == 0
    with pytest.raises(UserError, match="keys only"):
        index.of(TABLE, Action((), 0.3))


class Recorder:
    """A denoiser that shows the oldest of its two frames, and writes down what it was given."""

    cfg = SimpleNamespace(inner_model=SimpleNamespace(num_steps_conditioning=2))

    def __init__(self):
        self.told, self.noise = [], []

    def eval(self):
        return self

    def denoise(self, noisy, level, past, told):
        if level == 5:
            self.told.append(told.tolist())
            self.noise.append(noisy.clone())
        return past[:, :3]


def test_its_window_holds_the_last_frames_and_the_action_after_each():
    net = Recorder()
    model = Diamond(net, torch.tensor([5.0, 1.0, 0.0]), ActionIndex(MASKS), TABLE)
    assert isinstance(model, Imaginer)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 3, SIZE, SIZE, 3), dtype=np.uint8)
    w, a = TABLE.press("w"), TABLE.press("a")
    found = model.imagine(frames, [[w, a, w, a], [a, a, w, w]], 2, [3, 3])
    assert net.told == [[[2, 1], [2, 1]], [[1, 2], [1, 1]]]
    np.testing.assert_array_equal(found[:, 0], frames[:, 1])
    np.testing.assert_array_equal(found[:, 1], frames[:, 2])
    assert torch.equal(net.noise[0][0], net.noise[0][1])  # one seed, one noise
    assert not torch.equal(net.noise[0], net.noise[1])


def test_one_given_frame_stands_for_those_that_are_missing():
    net = Recorder()
    model = Diamond(net, torch.tensor([5.0, 1.0, 0.0]), ActionIndex(MASKS), TABLE)
    frames = np.full((1, 1, SIZE, SIZE, 3), 9, np.uint8)
    found = model.imagine(frames, [[TABLE.press("w")]], 1, [0])
    assert net.told == [[[0, 1]]]
    np.testing.assert_array_equal(found[0, 0], frames[0, 0])


def test_batches_are_frames_with_the_number_of_the_action_after_each(store):
    index = diamond_train.known_masks(store)
    assert index.masks == MASKS
    clips = diamond_train.ClipIndex(store, 5, "train")
    batch = next(diamond_train.batches(clips, index, 4, "cpu"))
    assert batch.obs.shape == (4, 5, 3, SIZE, SIZE)
    assert -1 <= batch.obs.min() < -0.9 < 0.9 < batch.obs.max() <= 1
    window = clips.at(0, 0)
    expected = [index[m] for m in store.arrays(window.name)["keys"][window.start :][:4]]
    assert batch.act[0, :4].tolist() == expected
    assert batch.mask_padding.all()


def test_what_is_no_checkout_and_what_are_no_weights_is_told(tmp_path):
    with pytest.raises(UserError, match="no usable checkout"):
        diamond.borrow(tmp_path)
    with pytest.raises(UserError, match="diamond_train"):
        diamond.load(SPEC, str(tmp_path), "cpu")
    command = [sys.executable, "-m", "worldmodel.evaluate.diamond_train", "--store", "nowhere"]
    done = subprocess.run(
        [*command, "--checkout", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_it_is_trained_saved_and_loaded_as_an_imaginer(checkout, store, tmp_path, monkeypatch):
    names = set(sys.modules)
    found = diamond_train.train(checkout, store, tmp_path / "d", minutes=0, batch=2)
    left = {name.split(".")[0] for name in set(sys.modules) - names}
    assert not left & {"data", "models", "utils"}  # its names are nobody else's
    assert found["steps"] == 1
    assert json.loads((tmp_path / "d" / "config.json").read_text())["masks"] == list(MASKS)
    monkeypatch.delenv("DIAMOND_CHECKOUT")
    guest = invite("worldmodel.evaluate.diamond:load", str(tmp_path / "d"), SPEC, "cpu")
    assert (guest.name, guest.context) == ("DIAMOND", 4)
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, SIZE, SIZE, 3), dtype=np.uint8)
    actions = [[TABLE.press("w")] * 5] * 2
    one, two = (guest.imagine(frames, actions, 2, [1, 2]) for _ in range(2))
    assert one.shape == (2, 2, SIZE, SIZE, 3)
    np.testing.assert_array_equal(one, two)
    other = WorldSpec("tiny", ActionTable(TABLE.rows[:2]), SIZE, SIZE)
    with pytest.raises(UserError, match="was trained on"):
        invite("worldmodel.evaluate.diamond:load", str(tmp_path / "d"), other, "cpu")


def test_a_frame_is_denoised_as_its_own_sampler_does_it(checkout):
    parts = diamond.borrow(Path(checkout))
    torch.manual_seed(0)
    net = diamond.build(parts, 4)
    torch.nn.init.normal_(net.inner_model.conv_out.weight, std=0.05)  # it starts at zero
    model = Diamond(net, diamond.noise_levels(parts, net), ActionIndex(MASKS), TABLE)
    seen, told = torch.rand(1, 4, 3, SIZE, SIZE) * 2 - 1, torch.tensor([[0, 1, 2, 3]])
    config = parts.diffusion.DiffusionSamplerConfig(**parts.sampler)
    torch.manual_seed(1)
    theirs, (noise, *_) = parts.diffusion.DiffusionSampler(net, config).sample(seen, told)
    with torch.inference_mode():
        ours = model.next(seen, told, noise)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert parts.denoiser["inner_model"]["channels"] == [64] * 4
