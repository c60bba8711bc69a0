"""Models of another make: the protocol, what the suites do with it, and mistakes."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from worldmodel.actions import Action
from worldmodel.checkpoint import load
from worldmodel.cli import main
from worldmodel.datasets.store import EpisodeStore, EpisodeWriter
from worldmodel.errors import UserError
from worldmodel.evaluate.imaginer import CopyLast, Guest, Imaginer, Stepwise, find_object, invite
from worldmodel.evaluate.inverse_dynamics import train_idm
from worldmodel.evaluate.triples import ReaderConfig, save_reader
from worldmodel.world import Episode

SPEC = load("doom-nano").spec
TABLE = SPEC.actions
USER = '''
"""A model as a user would write it: it knows the world of this test, which scrolls."""

import numpy as np


class Scroller:
    name, context = "scroller", 2

    def __init__(self, table, brightness):
        self.table, self.brightness = table, brightness

    def imagine(self, frames, actions, horizon, seeds):
        assert frames.shape[1] <= self.context
        assert [len(row) for row in actions] == [frames.shape[1] - 1 + horizon] * len(frames)
        out = np.empty((len(frames), horizon, *frames.shape[2:]), np.uint8)
        for row, frame in enumerate(frames[:, -1]):
            for t, action in enumerate(actions[row][-horizon:]):
                frame = np.roll(frame, self.table.mask(action), axis=1)
                out[row, t] = frame
        return out + np.uint8(self.brightness)


def make(spec, weights, device):
    assert device == "cpu"
    return Scroller(spec.actions, int(open(weights).read()))


def deaf(spec, weights, device):
    return object()
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a user's file, its weights, a store, a reader of it and a picture."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "mine.py").write_text(USER)
    (folder / "weights.txt").write_text("0")
    writer = EpisodeWriter(folder / "s.zarr", SPEC)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        frame = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        keys = rng.choice([0, 1, 2, 4, 8], 24).astype(np.uint16)
        frames = [frame]
        for mask in keys:
            frames.append(np.roll(frames[-1], int(mask), axis=1))
        held = [TABLE.from_mask(int(mask)) for mask in keys]
        moves = np.array([(a.dx, a.dy, a.dyaw) for a in held], np.float32)
        split = "train" if seed < 3 else "val"
        info = {"split": split, "seed": seed, "world": "x", "level_seed": seed, "policy": "x"}
        writer.write(Episode(np.stack(frames), moves, keys, {}, (), info))
    reader = train_idm(EpisodeStore(folder / "s.zarr"), ReaderConfig(steps=2))
    save_reader(reader, folder / "i.safetensors")
    Image.fromarray(frames[0]).save(folder / "start.png")
    return folder


def test_the_command_scores_a_model_in_a_users_file(place, tmp_path):
    words = ["eval", f"imaginer={place}/mine.py:make", f"weights={place}/weights.txt"]
    words += [f"store={place}/s.zarr", f"idm={place}/i.safetensors", f"out={tmp_path}"]
    words += ["clips=3", "horizon=4", "key_steps=2", "starts=1", "batch=2", "device=cpu"]
    assert main(words) == 0
    card = json.loads((tmp_path / "scorecard.json").read_text())
    found = {(m["name"], m["horizon"]): m for m in card["metrics"]}
    assert card["checkpoint"] == "scroller"
    assert len(card["checkpoint_hash"]) == 64
    assert card["settings"]["imaginer"].endswith("mine.py:make")
    assert "guidance" not in card["settings"]
    for step in range(1, 5):
        assert found["psnr", step]["value"] == 60
        assert found["psnr", step]["baselines"]["reconstruction"] == 60
        assert found["psnr", step]["baselines"]["copy"] < 40
    assert ("fps", None) in found
    assert not any(name.startswith(("perplexity", "say_")) for name, _ in found)


def test_scenarios_with_sentences_are_left_out_and_the_rest_is_played(place, tmp_path, capsys):
    start, suite = f"start: {{image: {place}/start.png}}\n", tmp_path / "suite"
    suite.mkdir()
    (suite / "walk.yaml").write_text(f"{start}steps: 4\nchecks: [still]\n")
    (suite / "told.yaml").write_text(
        f"{start}steps: 4\nevents: [{{at: 0, say: turn left}}]\nchecks: [still]\n"
    )
    words = ["eval", f"imaginer={place}/mine.py:make", f"weights={place}/weights.txt"]
    words += [f"out={tmp_path}", "device=cpu"]
    assert main([*words, f"scenario={suite}"]) == 0
    card = json.loads((tmp_path / "scorecard.json").read_text())
    (metric,) = card["metrics"]
    assert metric["name"] == "walk: still"
    assert metric["value"] == pytest.approx(1)
    assert "left out, as scroller reads no sentences: told" in capsys.readouterr().out
    assert main([*words, f"scenario={suite}/told.yaml"]) == 2


def test_step_by_step_a_guest_imagines_what_it_imagines_at_once(place):
    guest = invite(f"{place}/mine.py:make", f"{place}/weights.txt", SPEC, "cpu")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 3, 64, 64, 3), dtype=np.uint8)
    actions = [[TABLE.from_mask(int(m)) for m in rng.choice([0, 1, 2, 4], 7)] for _ in range(2)]
    whole = guest.imagine(frames, actions, 5, [7, 8])
    stepped = Stepwise(guest).imagine(frames, actions, 5, [7, 8])
    np.testing.assert_array_equal(whole, stepped)
    guest.reset(seed=8, frames=frames[1], actions=actions[1][:2])
    alone = [guest.step(action).frame for action in actions[1][2:]]
    np.testing.assert_array_equal(alone, stepped[1])


class Dice:
    """Frames of nothing but its seed."""

    name, context = "dice", 1

    def imagine(self, frames, actions, horizon, seeds):
        shape = (horizon, *frames.shape[2:])
        return np.stack([np.random.default_rng(s).integers(0, 256, shape, "uint8") for s in seeds])


def test_a_guest_has_the_noise_of_its_seed_and_new_noise_in_each_step():
    guest, frame = Guest(Dice(), SPEC), np.zeros((1, 64, 64, 3), np.uint8)

    def roll(seed):
        guest.reset(seed=seed, frames=frame, actions=[])
        return [guest.step(Action()).frame for _ in range(2)]

    first, again, other = roll(3), roll(3), roll(4)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[1], other[0])


def test_a_dream_behind_the_protocol_repeats_itself_and_goes_its_own_way():
    from worldmodel.dream import Dream

    dream = Dream.load(device="cpu", dtype="float32", denoise_steps=1)
    ticks = []
    model = Stepwise(dream, tick=ticks.append)
    assert isinstance(model, Imaginer)
    assert model.name == "doom-nano"
    frames = np.stack([dream.engine.checkpoint.start_frames[0][:2]] * 3)
    w, a = TABLE.press("w"), TABLE.press("a")
    found = model.imagine(frames, [[w, w, w], [w, w, w], [w, a, a]], 2, [5, 5, 5])
    assert found.shape == (3, 2, 64, 64, 3)
    assert ticks == [3, 3]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    dream.reset(seed=5, frames=frames[0], actions=[w])
    alone = np.stack([dream.step(a).frame for _ in range(2)])
    assert np.abs(alone.astype(int) - found[2]).max() <= 1  # larger products round otherwise


def test_the_copy_is_a_model_too():
    guest = invite("worldmodel.evaluate.imaginer:copy_last", "", SPEC, "cpu")
    assert isinstance(guest.model, CopyLast)
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64, 3), dtype=np.uint8)
    found = guest.imagine(frames, [[Action()] * 6] * 2, 4, [0, 1])
    np.testing.assert_array_equal(found, np.repeat(frames[:, -1:], 4, axis=1))


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("mine", "path/to/file.py:name"),
        ("nowhere.py:make", "cannot be imported"),
        ("no_such_package_x:make", "cannot be imported"),
        ("worldmodel.actions:nothing", "has no 'nothing'"),
    ],
)
def test_what_is_no_object_is_told(named, says):
    with pytest.raises(UserError, match=says):
        find_object(named)


def test_models_that_do_not_fit_the_protocol_are_told(place):
    with pytest.raises(UserError, match="without name and context and imagine"):
        invite(f"{place}/mine.py:deaf", "", SPEC, "cpu")
    frames = np.zeros((1, 1, 64, 64, 3), np.uint8)
    for wrong in (frames, np.zeros((1, 2, 64, 64, 3), np.float32)):
        model = CopyLast()
        model.imagine = lambda *_, wrong=wrong: wrong
        with pytest.raises(UserError, match="must be uint8 \\[1, 2, 64, 64, 3\\]"):
            Guest(model, SPEC).imagine(frames, [[Action()] * 2], 2, [0])
    with pytest.raises(UserError, match="no starts of its own"):
        Guest(CopyLast(), SPEC).reset(seed=1)
    with pytest.raises(UserError, match="reads no sentences"):
        Guest(CopyLast(), SPEC).say("go")
    blind = CopyLast()
    blind.context = 0
    with pytest.raises(UserError, match="look back on a frame"):
        Guest(blind, SPEC)


def test_weights_without_a_model_are_refused():
    from worldmodel.evaluate.config import EvalConfig
    from worldmodel.evaluate.run import main as run

    with pytest.raises(UserError, match="name one with imaginer="):
        run(dataclasses.replace(EvalConfig(), weights="x"))
