"""What experts are picked for: counts of a real (tiny) core, scores of known picks."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.evaluate import experts
from worldmodel.evaluate.rollouts import Clips
from worldmodel.evaluate.routing import Tally
from worldmodel.moe import routers
from worldmodel.passes import Pass
from worldmodel.stream import Engine


@pytest.fixture(scope="module")
def engine():
    made = runpy.run_path(str(Path(__file__).parent / "test_checkpoint.py"))["make"]()
    return Engine(made, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 8, 16, 16, 3), dtype=np.uint8)
    keys = rng.integers(0, 2, (3, 7)).astype(np.uint16)
    moves = np.zeros((3, 7, 3), np.float32)
    return Clips(frames, keys, moves, 3, ("a", "b", "c"), (0, 0, 0))


def test_every_pick_is_counted_where_it_belongs(engine, clips, monkeypatch):
    passes, tallies = [], []
    predict = Pass.predict

    def watched(self, *given):
        tally = Tally(self.engine.core)
        found = predict(self, *given)
        tallies.append(tally.take()[:, 1])
        tally.close()
        passes.append(1)
        return found

    monkeypatch.setattr(Pass, "predict", watched)
    picks = experts.count_picks(engine, clips, ["turn left"], denoise_steps=2, seed=1)
    config = engine.core.config
    chosen = config.frame_tokens * config.feed_forward["top_k"]
    future = clips.future.shape[1]
    assert picks.shape == (3, config.depth, 3, config.experts)
    assert len(passes) == 3 * future * 2
    assert np.all(picks[:, :, 1].sum(-1) == future * chosen)
    assert np.all(picks[:, :, 2].sum(-1) == future * 2 * chosen)
    # Of made frames, what the denoising passes picked.
    assert np.array_equal(picks[:, :, 2].sum(0), sum(tallies).numpy())
    # Words: <bos>, and for each frame its action, <boi> and <eoi>; the first clip has a sentence.
    words = picks[:, :, 0].sum(-1)
    assert np.all(words[0] > words[1])
    assert not [hook for router in routers(engine.core) for hook in router._forward_hooks]


def known(text, seen, made):
    """Picks of 4 clips with one layer and these counts."""
    return np.stack([np.stack([np.array([text, seen, made], float)])] * 4)


def scores(picks):
    found = {m.name: m for m in experts.measure_experts(picks)}
    assert all(m.low <= m.value <= m.high for m in found.values())
    return found


def test_experts_of_one_use_alone_have_a_specialisation_of_one_bit():
    found = scores(known([5, 5, 0, 0], [0, 0, 1, 3], [0, 0, 10, 30]))
    one = found["experts_specialisation"]
    assert one.value == pytest.approx(1)
    assert one.baselines["seen and made"] == pytest.approx(0)
    assert found["experts_correlation"].value == pytest.approx(1)
    assert found["experts_specialisation_layer_1"].value == one.value


def test_experts_that_serve_all_alike_have_none():
    found = scores(known([2, 4, 6, 8], [1, 2, 3, 4], [3, 6, 9, 12]))
    assert found["experts_specialisation"].value == pytest.approx(0, abs=1e-9)
    assert found["experts_correlation"].baselines["text and made"] == pytest.approx(1)
    opposite = scores(known([1, 1, 1, 1], [4, 3, 2, 1], [1, 2, 3, 4]))
    assert opposite["experts_correlation"].value == pytest.approx(-1)
    assert opposite["experts_correlation"].baselines["text and made"] == 0  # text is even


def test_the_table_holds_shares_and_leanings_and_the_picture_is_one():
    picks = known([6, 0, 2], [0, 4, 4], [0, 4, 4])
    found = experts.table(picks)["experts"]
    assert found["share"]["text"] == [[0.75, 0, 0.25]]
    assert found["leaning"] == [[1, -1, pytest.approx(-1 / 3, abs=1e-4)]]
    assert experts.draw(picks).png[1:4] == b"PNG"
