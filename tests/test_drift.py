"""Drift and sensitivity to actions, on rollouts that are known to drift or to listen."""

import numpy as np
import pytest
import torch

from worldmodel.actions import Action, ActionRow, ActionTable
from worldmodel.evaluate.drift import WINDOW, measure_drift
from worldmodel.evaluate.rollouts import Clips
from worldmodel.evaluate.sensitivity import WRONG, measure_sensitivity, wrong_plans

TABLE = ActionTable(
    (
        ActionRow("up", "w", "up", dx=0.5),
        ActionRow("left", "a", "left", dyaw=10.0, unit="deg"),
        ActionRow("right", "d", "right", dyaw=-10.0, unit="deg"),
    )
)


class Blocks:
    """Latents are the means of 4x4 blocks."""

    def encode(self, frames):
        blocks = frames.float().unflatten(2, (-1, 4)).unflatten(1, (-1, 4)).mean((2, 4))
        return (blocks.flatten(1, 2) - 128) / 64

    def decode(self, latents):
        raise NotImplementedError


def walk(seed, keys):
    """A texture that scrolls as the keys say, uint8 [T+1, 32, 32, 3]."""
    rng = np.random.default_rng(seed)
    frames = [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)]
    for key in keys:
        action = TABLE.from_mask(int(key))
        shift = (round(4 * action.dx), round(action.dyaw / 5))
        frames.append(np.roll(frames[-1], shift, axis=(0, 1)))
    return np.stack(frames)


def make_clips(count, steps, seed=0):
    rng = np.random.default_rng(seed)
    keys = rng.choice([1, 2, 4, 3], (count, 3 + steps)).astype(np.uint16)
    frames = np.stack([walk(100 * seed + i, row) for i, row in enumerate(keys)])
    moves = np.zeros((*keys.shape, 3), np.float32)
    names = tuple(f"e{i}" for i in range(count))
    return Clips(frames, keys, moves, 4, names, (0,) * count)


@pytest.fixture(scope="module")
def reference():
    return np.concatenate([make_clips(60, WINDOW - 4, seed=9).frames, make_clips(60, 12, 8).frames])


def test_true_futures_do_not_drift_frozen_and_fading_ones_do(reference):
    clips = make_clips(24, 3 * WINDOW)
    other = make_clips(24, 3 * WINDOW, seed=3).future
    frozen = np.repeat(clips.past[:, -1:], 3 * WINDOW, axis=1)
    dim = np.linspace(1, 0.2, 3 * WINDOW)[:, None, None, None]
    fading = (clips.future * dim).astype(np.uint8)
    found = {
        name: measure_drift(clips, frames, Blocks(), reference)
        for name, frames in {"real": other, "frozen": frozen, "fading": fading}.items()
    }
    for curve in found.values():
        assert [m.horizon for m in curve] == [16, 32, 48]
        assert all(m.low <= m.value <= m.high for m in curve)
        assert all(m.n == 24 for m in curve)
    for real, frozen_ in zip(found["real"], found["frozen"], strict=True):
        assert real.value < 3 * real.baselines["real"]
        assert frozen_.value > 3 * real.value
        assert frozen_.value == pytest.approx(frozen_.baselines["copy"])
    fade = [m.value for m in found["fading"]]
    assert fade[0] < fade[1] < fade[2]
    assert fade[2] > 3 * found["real"][2].value


def test_a_model_that_listens_is_worse_under_wrong_actions_and_a_deaf_one_is_not():
    clips = make_clips(12, 8)
    plans = clips.plans(TABLE)
    wrong = wrong_plans(plans)
    assert tuple(wrong) == WRONG
    assert wrong["shuffled"][0] == plans[1]
    assert all(action == Action() for action in wrong["zeroed"][3])
    for plan, mixed in zip(plans, wrong["time-shuffled"], strict=True):
        assert sorted(map(TABLE.mask, plan)) == sorted(map(TABLE.mask, mixed))
    assert wrong["time-shuffled"] != plans

    def imagine(told):
        noisy = []
        for i, plan in enumerate(told):
            frames = [clips.past[i, -1]]
            for action in plan:
                shift = (round(4 * action.dx), round(action.dyaw / 5))
                frames.append(np.roll(frames[-1], shift, axis=(0, 1)))
            noisy.append(np.stack(frames[1:]) // 2 + 60)  # a model with an error of its own
        return np.stack(noisy)

    futures = {kind: imagine(told) for kind, told in wrong.items()}
    listening = measure_sensitivity(clips, imagine(plans), futures, Blocks())
    deaf = measure_sensitivity(
        clips, imagine(plans), dict.fromkeys(WRONG, imagine(plans)), Blocks()
    )
    at = {(m.name, m.horizon): m for m in listening}
    for kind in ("shuffled", "time_shuffled", "zeroed"):
        assert at[f"action_ratio_{kind}", None].low > 1.5
        assert at[f"action_ratio_{kind}", 8].n == 12
    assert at["counterfactual_psnr", 8].low > 1
    assert set(at["counterfactual_psnr", None].baselines) == set(WRONG)
    for m in deaf:
        assert m.value == pytest.approx(0 if m.name == "counterfactual_psnr" else 1)


def test_blocks_are_what_the_tests_take_them_for():
    assert Blocks().encode(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).shape == (2, 64, 3)
