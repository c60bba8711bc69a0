"""Policies in closed loop: in a world, in the imagination, and an agent trained in the dream."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.envs.gym_controls import pairs
from worldmodel.errors import UserError
from worldmodel.evaluate import agents
from worldmodel.evaluate.config import EvalConfig
from worldmodel.evaluate.imaginer import Guest
from worldmodel.world import Step, WorldSpec

TABLE = ActionTable(
    (
        ActionRow("forward", "w", "step forward", dx=0.5, phrases=("step forward",)),
        ActionRow("left", "a", "turn left", dyaw=11.0, unit="deg", phrases=("turn left",)),
    )
)
SPEC = WorldSpec("lamp", TABLE, 16, 16)
KNOWN = pairs(TABLE)  # nothing, w, a, w+a


def after(frame, action):
    """The world: w makes it brighter, a darker."""
    change = 20 * ("w" in action.keys) - 20 * ("a" in action.keys)
    return (frame.astype(int) + change).clip(0, 255).astype(np.uint8)


class Lamp:
    """A world whose level is its brightness; it ends at white."""

    spec = SPEC
    closed = 0

    def reset(self, seed=None):
        self.frame = np.full((16, 16, 3), 40 + 10 * seed, np.uint8)
        return Step(self.frame)

    def step(self, action):
        self.frame = after(self.frame, action)
        return Step(self.frame, terminated=bool(self.frame.min() == 255))

    def close(self):
        Lamp.closed += 1


class Dimmer:
    """Imagines that world at half its changes."""

    name, context = "dimmer", 1

    def imagine(self, frames, actions, horizon, seeds):
        told = [row[-horizon:] for row in actions]
        out = np.repeat(frames[:, -1:], horizon, axis=1)
        for row, plan in enumerate(told):
            for t, action in enumerate(plan):
                before = out[row, t - 1] if t else frames[row, -1]
                half = (after(before, action).astype(int) - before) // 2
                out[row, t] = before + half.astype(np.int8).astype(np.uint8)
        return out


def test_a_walk_earns_by_its_frames_and_nothing_once_the_world_has_ended_it():
    walks = agents.walk_real(Lamp(), [0, 1], lambda frame: 1, KNOWN, 4, agents.brightness)
    assert walks.frames.shape == (2, 5, 16, 16, 3)
    assert walks.frames[0, :, 0, 0, 0].tolist() == [40, 60, 80, 100, 120]
    assert walks.earned == pytest.approx([90 / 255, 100 / 255])
    ended = agents.walk_real(Lamp(), [20], lambda frame: 1, KNOWN, 4, agents.brightness)
    assert ended.earned == pytest.approx([1 / 4])
    assert ended.frames[0, -1].min() == 255


def test_imagined_walks_go_as_one_batch_from_their_own_frames():
    starts = np.stack([np.full((16, 16, 3), level, np.uint8) for level in (40, 100)])
    guest = Guest(Dimmer(), SPEC)
    choose = lambda frame: int(frame.mean() < 70)  # noqa: E731
    walks = agents.walk_imagined(guest, starts, 0, choose, KNOWN, 4, agents.brightness)
    assert walks.frames[0, :, 0, 0, 0].tolist() == [40, 50, 60, 70, 70]
    assert walks.frames[1, :, 0, 0, 0].tolist() == [100] * 5


def test_a_policy_is_scored_in_both_beside_random_walks_the_key_ahead_and_nothing(
    monkeypatch, tmp_path
):
    (tmp_path / "mine.py").write_text(
        "forward = lambda frame: 1\n"
        "def darkness(before, after): return 1 - after.mean() / 255\n"
        "number = 3\n"
        "far = lambda frame: 4\n"
    )
    monkeypatch.setattr(agents, "open_world", lambda start, spec: Lamp())
    config = EvalConfig(policy=f"{tmp_path}/mine.py:forward", starts=3, horizon=4, batch=2)
    found = agents.run_policy(Guest(Dimmer(), SPEC), config)
    values = {m.name: m for m in found.metrics}
    real, dream = values["reward_real"], values["reward_dream"]
    assert real.value == pytest.approx(100 / 255)
    assert dream.value == pytest.approx(75 / 255)
    assert real.baselines["ahead"] == real.value
    assert real.baselines["still"] == pytest.approx(50 / 255)
    assert real.baselines["random"] < real.value
    assert values["reward_dream_over_real"].value == pytest.approx(-25 / 255)
    passed = {v.name: v.passed for v in found.verdicts}
    assert passed["earns more than still"]
    assert not passed["earns more than ahead"]
    assert Lamp.closed == 1
    assert found.sheets[0].png[1:4] == b"PNG"

    def run(**changes):
        return agents.run_policy(
            Guest(Dimmer(), SPEC),
            EvalConfig(**{"policy": config.policy, "starts": 2, "horizon": 2, **changes}),
        )

    dark = run(reward=f"{tmp_path}/mine.py:darkness").metrics[0]
    assert dark.value == pytest.approx(1 - 75 / 255)
    with pytest.raises(UserError, match="there are 0 to 3"):
        run(policy=f"{tmp_path}/mine.py:far")
    with pytest.raises(UserError, match="a policy is a function of a frame"):
        run(policy=f"{tmp_path}/mine.py:number")
    with pytest.raises(UserError, match="has no 'lost'"):
        run(reward=f"{tmp_path}/mine.py:lost")


def test_an_agent_is_trained_in_the_dream_and_loaded_to_be_scored(tmp_path):
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecMonitor

    example = runpy.run_path(str(Path(__file__).parents[1] / "docs/examples/train_in_dream.py"))
    dreams = example["DreamVecEnv"](2, 3, agents.brightness, device="cpu", denoise_steps=1)
    settings = {"n_steps": 4, "batch_size": 8, "n_epochs": 1, "seed": 0, "device": "cpu"}
    agent = PPO("CnnPolicy", VecMonitor(dreams), **settings)
    agent.learn(8)
    assert agent.ep_info_buffer
    assert [info["l"] for info in agent.ep_info_buffer] == [3, 3]
    agent.save(tmp_path / "agent.zip")
    policy = agents.load_policy(str(tmp_path / "agent.zip"))
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert 0 <= policy(frame) < dreams.action_space.n
    (tmp_path / "broken.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="no PPO agent"):
        agents.load_policy(str(tmp_path / "broken.zip"))
    with pytest.raises(UserError, match="no PPO agent"):
        agents.load_policy(str(tmp_path / "nowhere.zip"))
