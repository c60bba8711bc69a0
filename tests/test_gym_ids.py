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


def test_the_bundled_model_is_a_gymnasium_environment_and_a_seed_repeats_it():
    env = gymnasium.make("worldmodel/Dream-v0", device="cpu", max_episode_steps=5)
    check_env(env.unwrapped)

    def play():
        frames = [env.reset(seed=3)[0]]
        while True:
            frame, *_, truncated, _ = env.step(len(frames))
            frames.append(frame)
            if truncated:
                return np.stack(frames)

    first = play()
    assert first.shape == (6, 64, 64, 3)
    np.testing.assert_array_equal(play(), first)
    assert (first[1:] != first[:-1]).any(axis=(1, 2, 3)).all()
    env.close()
    for make in (gymnasium.make, gymnasium.make_vec):
        with pytest.raises(UserError, match="Did you mean 'doom-nano'"):
            make("worldmodel/Dream-v0", checkpoint="doom-nnao")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from worldmodel.checkpoint import save

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save(runpy.run_path(str(ROOT / "tests" / "test_checkpoint.py"))["make"](), folder)
    return {"checkpoint": str(folder), "device": "cpu", "dtype": "float32", "denoise_steps": 1}


def test_several_dreams_in_one_batch_are_what_each_is_alone(tiny):
    """To one grey level: larger matrix products are summed in another order."""
    kwargs = tiny | {"max_episode_steps": 7, "render_mode": "rgb_array"}
    together = gymnasium.make_vec("worldmodel/Dream-v0", num_envs=3, **kwargs)
    alone = [gymnasium.make("worldmodel/Dream-v0", **kwargs) for _ in range(3)]
    assert together.unwrapped.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.NEXT_STEP
    frames, _ = together.reset(seed=5, options={"instruction": "go"})
    for i, env in enumerate(alone):
        np.testing.assert_array_equal(
            frames[i], env.reset(seed=5 + i, options={"instruction": "go"})[0]
        )
    rng, ended = np.random.default_rng(0), [False] * 3
    for t in range(18):
        if t == 3:  # one begins anew by itself: from here on their ends come at different steps
            frames, _ = together.reset(
                seed=[None, 9, None], options={"reset_mask": np.array([False, True, False])}
            )
            np.testing.assert_array_equal(frames[1], alone[1].reset(seed=9)[0])
        actions = rng.integers(together.single_action_space.n, size=3)
        frames, rewards, terminated, truncated, infos = together.step(actions)
        assert frames.shape == (3, *alone[0].observation_space.shape)
        for i, env in enumerate(alone):
            if ended[i]:
                (frame, info), ended[i] = env.reset(), False
            else:
                frame, *_, ended[i], info = env.step(int(actions[i]))
            assert np.abs(frames[i].astype(int) - frame).max() <= 1
            assert (ended[i], info["text"]) == (truncated[i], infos["text"][i])
            assert infos["_text"][i]
            np.testing.assert_array_equal(together.render()[i], frames[i])
        assert not rewards.any()
        assert not terminated.any()
    assert truncated.tolist() != [True] * 3
    together.close()


def test_a_batch_of_dreams_takes_buttons_and_refuses_what_is_not_one_for_each(tiny):
    envs = gymnasium.make_vec("worldmodel/Dream-v0", num_envs=2, actions="buttons", **tiny)
    envs.reset(seed=0)
    keys = envs.unwrapped.envs[0].get_action_meanings()
    held = np.zeros((2, len(keys)), np.int8)
    held[1, keys.index("w")] = 1
    assert held in envs.action_space
    *_, infos = envs.step(held)
    assert infos["text"].tolist() == ["action: none", "action: w"]
    for wrong in ({"seed": [1]}, {"options": {"reset_mask": np.array([True])}}):
        with pytest.raises(UserError, match="need as many seeds"):
            envs.reset(**wrong)
    with pytest.raises(UserError, match="must be at least 1"):
        gymnasium.make_vec("worldmodel/Dream-v0", num_envs=0, **tiny)
    same = gymnasium.make_vec("worldmodel/Dream-v0", num_envs=2, vectorization_mode="sync", **tiny)
    assert isinstance(same, gymnasium.vector.SyncVectorEnv)


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
