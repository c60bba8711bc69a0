"""Our own environments as Gymnasium ids."""

import runpy
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from worldmodel.envs import make_world
from worldmodel.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("actions", ["discrete", "buttons"])
def test_doom_is_a_gymnasium_environment(actions):
    env = gymnasium.make("worldmodel/Doom-v0", native=120, actions=actions, render_mode="rgb_array")
    check_env(env.unwrapped)
    first, info = env.reset(seed=5)
    world = make_world("doom", native=120)
    np.testing.assert_array_equal(first, world.reset(5).frame)
    names = env.unwrapped.get_action_meanings()
    action = names.index("w+a") if actions == "discrete" else np.array([1, 0, 1, 0, 0, 0], np.int8)
    frame, reward, _, _, info = env.step(action)
    np.testing.assert_array_equal(frame, world.step(world.spec.actions.press("wa")).frame)
    np.testing.assert_array_equal(frame, env.render())
    assert (reward, info["text"]) == (0.0, "action: w+a")
    world.close()
    env.close()
    with pytest.raises(UserError, match="Did you mean 'buttons'"):
        gymnasium.make("worldmodel/Doom-v0", actions="button")


def test_a_checkpoint_is_a_gymnasium_environment(tmp_path):
    from worldmodel.checkpoint import save
    from worldmodel.dream import Dream

    make = runpy.run_path(str(ROOT / "tests" / "test_checkpoint.py"))["make"]
    save(make(), tmp_path / "tiny")
    kwargs = {"checkpoint": str(tmp_path / "tiny"), "device": "cpu", "denoise_steps": 1}
    env = gymnasium.make("worldmodel/Dream-v0", render_mode="rgb_array", **kwargs)
    check_env(env.unwrapped)
    env.reset(seed=1)
    action = env.unwrapped.get_action_meanings().index("w")
    frame = env.step(action)[0]
    dream = Dream.load(**kwargs)
    dream.reset(1)
    np.testing.assert_array_equal(frame, dream.step(dream.spec.actions.press("w")).frame)
    env.reset(seed=1, options={"instruction": "go"})
    assert env.step(action)[-1]["text"] == "instruction: go action: w"
    env.close()


def test_our_environment_is_a_world_again(capsys):
    """GymWorld finds the keys that WorldEnv's action meanings name."""
    world = make_world("gym:worldmodel/Doom-v0")
    assert set(world.spec.actions.keys) == set("wasdqe")
    first = world.reset(2)
    native = world.env.unwrapped.world
    step = world.step(world.spec.actions.press("wa"))
    assert step.text == "action: w+a"
    assert native.info["level_seed"] == 6
    assert (step.frame != first.frame).any()
    world.close()


def test_registering_is_cheap():
    code = (
        "import sys, worldmodel.envs, gymnasium;"
        "assert 'worldmodel/Dream-v0' in gymnasium.registry;"
        "print(*{'torch', 'cv2', 'vizdoom', 'pygame'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == ""
