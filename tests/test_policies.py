from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.envs import make_policy
from worldmodel.envs.doom.world import DoomWorld
from worldmodel.envs.gym_config import load_preset
from worldmodel.envs.policies import POLICIES
from worldmodel.errors import UserError
from worldmodel.world import Step, WorldSpec


@pytest.fixture(scope="module")
def world():
    world = DoomWorld(native=120)
    yield world
    world.close()


def drive(world, name, seed, steps=256):
    """Return the keys pressed, the poses, and the share of rooms entered."""
    step, policy = world.reset(seed), make_policy(name, seed)
    rooms, keys, poses = set(), [], [step.facts["pose"]]
    for _ in range(steps):
        action = policy.act(step, world.spec)
        step = world.step(action)
        keys.append("+".join(action.keys) or "none")
        poses.append(step.facts["pose"])
        x, y = step.facts["pose"][:2] * 32
        rooms |= {n for n in range(world.level.rooms) if world.level.sectors[n].contains(x, y)}
    return keys, np.array(poses), len(rooms) / world.level.rooms


def test_explore_covers_much_more_than_a_random_walk(world):
    explored = np.mean([drive(world, "explore", seed)[2] for seed in range(8)])
    wandered = np.mean([drive(world, "random", seed)[2] for seed in range(8)])
    assert explored > 0.45
    assert explored > 1.5 * wandered


def test_mix_uses_every_key_and_combination_and_does_not_stick(world):
    keys: Counter[str] = Counter()
    still = held = 0
    for seed in range(8):
        pressed, poses, _ = drive(world, "mix", seed)
        keys.update(pressed)
        held += sum(a == b for a, b in pairwise(pressed))
        wants = np.array([bool(set(p.split("+")) & set("wsqe")) for p in pressed])
        moved = np.hypot(*np.diff(poses[:, :2], axis=0).T)
        still += int((wants & (moved < 0.2)).sum())
    total = keys.total()
    for key in "wasdqe":
        share = sum(n for combo, n in keys.items() if key in combo.split("+")) / total
        assert share > 0.03, key
    assert keys["none"] / total > 0.015
    assert sum("+" in combo for combo in keys) >= 8
    assert still / total < 0.08
    assert held / total > 0.5  # keys are held, not hammered


def test_goto_reaches_objects(world):
    reached = 0
    for seed in range(6):
        step, policy = world.reset(seed), make_policy("goto", seed)
        for _ in range(256):
            step = world.step(policy.act(step, world.spec))
            reached += bool(np.nanmin([99, *step.facts["distance"]]) < 2.2)
    assert reached > 20


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_same_seed_same_actions_also_after_reset(world, name):
    policy = make_policy(name, 3)
    runs = []
    for _ in range(2):
        step = world.reset(3)
        policy.reset(3)
        run = []
        for _ in range(60):
            action = policy.act(step, world.spec)
            step = world.step(action)
            run.append(action.keys)
        runs.append(run)
    assert runs[0] == runs[1]
    assert runs[0] == drive_keys(world, name)


def drive_keys(world, name):
    pressed, _, _ = drive(world, name, 3, 60)
    return [() if keys == "none" else tuple(keys.split("+")) for keys in pressed]


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_policies_work_in_worlds_without_facts_and_with_other_keys(name):
    table = ActionTable((ActionRow("up", "u", "up", dx=1), ActionRow("left", "a", "left", dyaw=9)))
    spec = WorldSpec("other", table)
    policy = make_policy(name, 0)
    step = Step(np.zeros((64, 64, 3), np.uint8))
    for _ in range(50):
        assert set(policy.act(step, spec).keys) <= {"u", "a"}


def test_unknown_policy_suggests():
    with pytest.raises(UserError, match="Did you mean 'explore'"):
        make_policy("explorer", 0)


def driver():
    """A car's keys: no facts, no metres; the wheel turns one way at a time."""
    rows = {row.row.key: row.row for row in load_preset("carracing").rows}
    for key in ("a", "d"):
        rows[key] = replace(rows[key], joins=("w", "s"))
    return WorldSpec("car", ActionTable(tuple(rows.values())))


@pytest.mark.parametrize("name", ["random", "mix", "explore", "goto"])
def test_policies_use_all_keys_of_a_world_without_facts(name):
    spec = driver()
    pressed = []
    for seed in range(6):
        policy = make_policy(name, seed)
        policy.reset(seed)
        step = Step(np.zeros((8, 8, 3), np.uint8))
        pressed += [policy.act(step, spec).keys for _ in range(200)]
    assert {key for keys in pressed for key in keys} == set(spec.actions.keys)
    assert ("w", "a") in pressed
    assert ("a", "d") not in pressed  # opposites of a wheel
    held = sum(a == b for a, b in pairwise(pressed)) / len(pressed)
    assert held > 0.6
    assert 0.02 < pressed.count(()) / len(pressed) < 0.3


def test_mix_varies_its_style_where_there_are_no_facts():
    spec = driver()
    shares = {}
    for name in ("random", "mix"):
        stretches = []
        for seed in range(8):
            policy = make_policy(name, seed)
            step = Step(np.zeros((8, 8, 3), np.uint8))
            keys = [policy.act(step, spec).keys for _ in range(240)]
            for start in range(0, 240, 40):
                part = keys[start : start + 40]
                stretches.append(sum("w" in k for k in part) / len(part))
        shares[name] = np.std(stretches)
    assert shares["mix"] > 1.1 * shares["random"]
