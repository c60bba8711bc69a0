"""The quick suite on stand-ins whose results are known: perfect, copying, frozen, noisy."""

import dataclasses
import json
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from worldmodel.actions import Action, ActionRow, ActionTable
from worldmodel.datasets.store import EpisodeStore, EpisodeWriter
from worldmodel.errors import UserError
from worldmodel.evaluate import run as run_
from worldmodel.evaluate.config import EvalConfig
from worldmodel.evaluate.inverse_dynamics import train_idm
from worldmodel.evaluate.planning import integrate
from worldmodel.evaluate.pose import PoseReader, has_pose
from worldmodel.evaluate.quick import run_quick
from worldmodel.evaluate.rollouts import imagine, sample_clips
from worldmodel.evaluate.scorecard import Scorecard
from worldmodel.evaluate.triples import ReaderConfig, save_reader
from worldmodel.world import Annotation, Episode, Step, WorldSpec

SIZE = 32
TABLE = ActionTable(
    (
        ActionRow("forward", "w", "step forward", dx=0.5, phrases=("step forward",)),
        ActionRow("back", "s", "step back", dx=-0.5, phrases=("step back",)),
        ActionRow("left", "a", "turn left", dyaw=11.0, unit="deg", phrases=("turn left",)),
        ActionRow("right", "d", "turn right", dyaw=-11.0, unit="deg", phrases=("turn right",)),
    )
)
SPEC = WorldSpec("scroll", TABLE, SIZE, SIZE)
SMALL = EvalConfig(
    clips=8, horizon=16, starts=2, key_steps=32, batch=3, texts=20, instructions=("turn right",),
    pose="none",
)  # fmt: skip


def follow(frame, action):
    """The world: a texture on a torus that scrolls."""
    return np.roll(frame, (round(action.dx * 6), round(action.dyaw * 3 / 11)), axis=(0, 1))


def make_store(path, episodes=24, steps=63):
    writer = EpisodeWriter(path, SPEC)
    for seed in range(episodes):
        rng = np.random.default_rng(seed)
        frame = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        keys = rng.choice([0, 1, 2, 4, 8, 5], steps).repeat(4)[:steps].astype(np.uint16)
        frames = [frame]
        for key in keys:
            frames.append(follow(frames[-1], TABLE.from_mask(int(key))))
        moves = [TABLE.from_mask(int(key)) for key in keys]
        notes = (
            Annotation("caption", 0, 0, "a red wall on the left"),
            Annotation("question", 1, 1, "what is ahead?", "a wall"),
        )
        split = "train" if seed < 18 else "val"
        info = {"split": split, "seed": seed, "world": "scroll", "level_seed": seed, "policy": "x"}
        actions = np.array([(m.dx, m.dy, m.dyaw) for m in moves], np.float32)
        facts = {"pose": integrate(moves).astype(np.float32)}
        writer.write(Episode(np.stack(frames), actions, keys, facts, notes, info))
    return EpisodeStore(path)


class BlockEncoder:
    """Latents are the means of 2x2 blocks."""

    def encode(self, frames):
        blocks = frames.float().unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).mean((2, 4))
        return (blocks.flatten(1, 2) - 128) / 64

    def decode(self, latents):
        grid = (latents * 64 + 128).unflatten(1, (SIZE // 2, SIZE // 2))
        return grid.repeat_interleave(2, 1).repeat_interleave(2, 2).round().to(torch.uint8)


class Scroll:
    """A stand-in for a Dream that imagines the truth as the decoder would show it."""

    spec, encoder = SPEC, BlockEncoder()
    device, device_reason, dtype = "cpu", "a test", "float32"

    def reset(self, seed=None, frames=None, actions=None):
        assert len(actions) == len(frames) - 1
        self.seed, self.truth, self.told = seed, frames[-1], None
        return Step(frames[-1])

    def say(self, text):
        self.told = text
        return text or ""

    def step(self, action):
        if action is None:
            action = TABLE.parse(self.told) if self.told else Action()
        self.truth = follow(self.truth, action)
        return Step(self.show(self.truth))

    def show(self, frame):
        whole = torch.from_numpy(np.ascontiguousarray(frame))[None]
        return self.encoder.decode(self.encoder.encode(whole))[0].numpy()

    def captions(self, frames):
        return ["red wall left"] * len(frames)

    def answers(self, frames, questions):
        return ["a wall"] * len(questions)

    def text_perplexity(self, texts):
        return float(np.mean([len(text) for text in texts]))


class Batched(Scroll):
    """The same with forks and batches."""

    calls = 0

    def fork(self, k):
        return [type(self)() for _ in range(k)]

    @classmethod
    def batch_step(cls, dreams, actions):
        Batched.calls += 1
        return [dream.step(action) for dream, action in zip(dreams, actions, strict=True)]


class Frozen(Scroll):
    """Copies the last frame."""

    def step(self, action):
        return Step(self.truth)


class Noise(Scroll):
    """Follows the actions under ever more noise."""

    def step(self, action):
        frame = super().step(action).frame
        return Step(np.random.default_rng().integers(0, 256, frame.shape, dtype=np.uint8))


class Deaf(Scroll):
    """Always turns left, whatever it is told."""

    def step(self, action):
        return super().step(TABLE.press("a"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store") / "scroll.zarr")


@pytest.fixture(scope="module")
def idm(store):
    return train_idm(store, ReaderConfig(steps=110, batch=32))


@pytest.fixture(scope="module")
def evaluate(store, idm):
    found = {}

    def run(kind):
        if kind not in found:
            outcome = run_quick(kind(), BlockEncoder(), store, idm, SMALL)
            with pytest.MonkeyPatch.context() as patch:  # these models have no folder
                patch.setattr(run_, "find", lambda name: run_.Path("nowhere"))
                found[kind] = outcome, run_.make_scorecard(SMALL, outcome, kind())
        return found[kind]

    return run


def verdicts(card):
    return {v.name: v.passed for v in card.verdicts}


def test_a_perfect_model_reaches_the_ceiling_and_every_requirement(evaluate):
    _, card = evaluate(Scroll)
    for name in ("ssim", "psnr", "encoder_distance"):
        curve = card.curve(name)
        assert [m.horizon for m in curve] == list(range(1, 17))
        for m in curve:
            assert m.value == pytest.approx(m.baselines["reconstruction"], abs=1e-6)
            assert m.low <= m.value <= m.high
            assert m.n == 8
    assert card.get("idm_exact_real").value > 0.9
    assert card.get("idm_exact_other_actions").value > 0.8
    assert card.get("idm_gap_to_shuffled").low > 0.3
    assert card.get("ssim_over_shuffled", 16).value > 0.3
    assert card.get("say_turn_right_read").value > 0.8
    assert all(verdicts(card).values()), [v for v in card.verdicts if not v.passed]
    assert len(card.verdicts) == 7
    assert card.get("answer_accuracy").value == 1
    assert card.get("caption_f1").value == 1


def test_a_copying_model_scores_as_the_copy_and_freezes(evaluate):
    _, card = evaluate(Frozen)
    for name in ("ssim", "psnr", "encoder_distance"):
        for m in card.curve(name):
            assert m.value == m.baselines["copy"]
    found = verdicts(card)
    assert not found["better than copying the last frame in SSIM"]
    assert not found["better than copying the last frame in encoder distance"]
    for key in "wad":
        assert not found[f"32 steps of '{key}' neither freeze nor dissolve"]
        assert (
            card.get(f"key_{key}_change").value
            < card.get(f"key_{key}_change").baselines["real low"]
        )


def test_a_model_of_noise_dissolves(evaluate):
    _, card = evaluate(Noise)
    for key in "wad":
        sharp = card.get(f"key_{key}_sharpness")
        assert sharp.value > sharp.baselines["real high"]
        assert not verdicts(card)[f"32 steps of '{key}' neither freeze nor dissolve"]
    assert not verdicts(card)["better than copying the last frame in SSIM"]


def test_a_model_that_does_not_listen_has_no_gap_and_no_other_key(evaluate):
    _, card = evaluate(Deaf)
    assert card.get("idm_gap_to_shuffled").value == pytest.approx(0)
    found = verdicts(card)
    assert not found["actions can be read off the imagination"]
    assert found["32 steps of 'a' neither freeze nor dissolve"]
    assert not found["32 steps of 'd' neither freeze nor dissolve"]


def test_wrong_actions_cost_a_model_that_listens_and_nothing_a_deaf_one(evaluate):
    for kind, costs in ((Scroll, True), (Deaf, False)):
        _, card = evaluate(kind)
        for wrong in ("shuffled", "time_shuffled", "zeroed"):
            ratio = card.get(f"action_ratio_{wrong}")  # at the last step order makes no difference
            assert (ratio.low > 1.5) == costs
            assert costs or ratio.value == pytest.approx(1)
        assert (card.get("counterfactual_psnr").low > 0) == costs
        assert len(card.curve("counterfactual_psnr")) == 16


def test_pose_and_drift_are_measured_where_they_can_be(store, idm):
    assert has_pose(store)
    config = dataclasses.replace(SMALL, clips=2, horizon=4, key_steps=2, drift=32, questions=0)
    reader = PoseReader(SIZE, SIZE).eval()
    outcome = run_quick(Scroll(), BlockEncoder(), store, idm, config, reader)
    found = {(m.name, m.horizon): m for m in outcome.metrics}
    assert found["pose_position", 4].baselines["told"] == pytest.approx(0, abs=1e-4)
    assert {"real", "reconstruction", "still"} < found["pose_yaw", 1].baselines.keys()
    assert [h for name, h in found if name == "drift"] == [16, 32]
    without = run_quick(Scroll(), BlockEncoder(), store, idm, dataclasses.replace(config, drift=0))
    assert not {m.name for m in without.metrics} & {"drift", "pose_position"}
    assert run_.find_pose(dataclasses.replace(config, pose="none"), store) is None


def test_batched_rollouts_equal_single_ones(store):
    clips = sample_clips(store, "val", 7, 4, 8)
    plans = clips.plans(TABLE)
    Batched.calls = 0
    single, batched = (imagine(kind(), clips, plans, batch=3) for kind in (Scroll, Batched))
    assert np.array_equal(single, batched)
    assert Batched.calls == 2 * 8  # two whole batches; the seventh clip goes alone
    assert single.shape == (7, 8, SIZE, SIZE, 3)


def test_clips_are_what_the_store_holds_and_do_not_overlap(store):
    clips = sample_clips(store, "val", 100, 4, 12, seed=3)
    assert len(set(clips.names)) == 6
    for i, (name, start) in enumerate(zip(clips.names, clips.starts, strict=True)):
        episode = store.read(name)
        assert np.array_equal(clips.frames[i], episode.frames[start : start + 16])
        assert np.array_equal(clips.told[i], episode.keys[start + 3 : start + 15])
        others = [s for n, s in zip(clips.names, clips.starts, strict=True) if n == name]
        assert min(np.diff(sorted(others)), default=16) >= 16
    again = sample_clips(store, "val", 100, 4, 12, seed=3)
    assert again.starts == clips.starts


def test_scorecard_survives_its_file_with_numbers_that_are_not_finite(evaluate, tmp_path):
    _, card = evaluate(Scroll)
    lost = dataclasses.replace(card.metrics[0], value=float("nan"), high=float("inf"))
    odd = dataclasses.replace(card, metrics=(lost, *card.metrics[1:]))
    odd.save(tmp_path / "scorecard.json")
    again = Scorecard.load(tmp_path / "scorecard.json")
    assert again.metrics[1:] == card.metrics[1:]
    assert np.isnan(again.metrics[0].value)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="not a scorecard"):
        Scorecard.load(tmp_path / "bad.json")


class Links(HTMLParser):
    """Collects what a page would load, and checks that tags close."""

    def __init__(self):
        super().__init__()
        self.loads, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.loads += [v for k, v in attrs if k in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def run_main(tmp_path, store, idm, monkeypatch, **changes):
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "core.safetensors").write_bytes(b"weights")
    save_reader(idm, folder / "idm.safetensors")
    dream = SimpleNamespace(Dream=SimpleNamespace(load=lambda *_, **__: Scroll()))
    monkeypatch.setitem(sys.modules, "worldmodel.dream", dream)
    config = dataclasses.replace(
        SMALL, checkpoint=str(folder), store=str(store.path), out=str(tmp_path / "out"), **changes
    )
    return run_.main(config)


def test_the_command_writes_a_scorecard_and_a_page_that_loads_nothing(
    tmp_path, store, idm, monkeypatch, capsys
):
    assert run_main(tmp_path, store, idm, monkeypatch, clips=4, horizon=8) == 0
    out = tmp_path / "out"
    data = json.loads((out / "scorecard.json").read_text())
    assert len(data["checkpoint_hash"]) == 64
    assert data["seed"] == 0
    assert {"value", "low", "high", "n", "horizon", "baselines"} <= set(data["metrics"][0])
    page = Links()
    page.feed((out / "index.html").read_text())
    assert page.open == []
    assert page.loads
    assert all(link.startswith(("#", "data:image/", "data:video/")) for link in page.loads)
    assert (out / "key_w.png").read_bytes()[1:4] == b"PNG"
    printed = capsys.readouterr().out
    assert "index.html" in printed
    assert "encoder_distance" in printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "quik"}, "Did you mean 'quick'"),
        ({"store": "nowhere.zarr"}, "worldmodel collect"),
        ({"split": "test"}, "it has: train, val"),
        ({"horizon": 500}, "shorter horizon"),
        ({"clips": 0}, "clips=0 is too small"),
        ({"questions": -1}, "questions=-1 is too small"),
        ({"drift": 8}, "shorter than a window"),
        ({"drift": 400}, "shorter horizon"),
        ({"prose": "nowhere.zarr"}, "nowhere.zarr"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(store, changes, message):
    config = dataclasses.replace(SMALL, **{"store": str(store.path), **changes})
    with pytest.raises(UserError, match=message):
        run_.main(config)


def test_another_world_is_refused(store):
    other = dataclasses.replace(SPEC, height=64, width=64)
    with pytest.raises(UserError, match="imagines 64x64"):
        run_.check_same_world(other, store.spec, SMALL)
    other = dataclasses.replace(SPEC, actions=ActionTable(TABLE.rows[:2]))
    with pytest.raises(UserError, match="knows w, s"):
        run_.check_same_world(other, store.spec, SMALL)


def test_a_trained_reader_is_cached_until_the_store_changes(tmp_path, monkeypatch):
    store, trained = make_store(tmp_path / "s.zarr", episodes=3), []
    monkeypatch.setattr(run_, "find", lambda name: tmp_path / "nowhere")

    def train(store):
        trained.append(1)
        return train_idm(store, ReaderConfig(steps=2, batch=4))

    monkeypatch.setattr(run_, "train_idm", train)
    config = dataclasses.replace(SMALL, store=str(store.path))
    run_.find_idm(config, store)
    run_.find_idm(config, store)
    assert len(trained) == 1
    run_.find_idm(config, make_store(tmp_path / "s.zarr", episodes=4))
    assert len(trained) == 2


def test_the_yaml_has_every_key_with_its_default_and_a_comment():
    path = run_.Path(run_.__file__).parents[1] / "worldmodel" / "conf" / "eval.yaml"
    text = path.read_text()
    defaults = dataclasses.asdict(EvalConfig())
    loaded = yaml.safe_load(text)
    for key in ("instructions", "compare"):
        loaded[key] = tuple(loaded[key])
    assert loaded == defaults
    lines = text.splitlines()
    assert all(lines[i - 1].startswith("# ") for i, x in enumerate(lines) if not x.startswith("#"))
