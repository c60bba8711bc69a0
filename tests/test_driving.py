"""CarRacing tells where the road lies, the driver follows it, and the sentences are true of it."""

from dataclasses import replace

import cv2
import gymnasium
import numpy as np
import pytest

from worldmodel.actions import ActionTable
from worldmodel.envs import annotate, make_policy, make_world, racing_facts
from worldmodel.envs.gym import GymWorld
from worldmodel.envs.gym_config import load_preset
from worldmodel.envs.racing_facts import HALF_WIDTH
from worldmodel.errors import UserError
from worldmodel.viewer.phrases import known_phrases
from worldmodel.world import Episode, WorldSpec


@pytest.fixture(scope="module")
def world():
    pytest.importorskip("Box2D")
    world = make_world("carracing")
    yield world
    world.close()


CAR = WorldSpec("car", ActionTable(tuple(row.row for row in load_preset("carracing").rows)))


def drive(world, seed, steps):
    policy, step = make_policy("drive", seed), world.reset(seed)
    seen, keys = [step], []
    for _ in range(steps):
        action = policy.act(step, world.spec)
        step = world.step(action)
        seen.append(step)
        keys.append("+".join(action.keys) or "none")
    return seen, keys


def test_the_driver_mostly_keeps_to_the_road_and_does_all_there_is_to_do(world):
    away, speed, keys = [], [], []
    for seed in range(3):
        seen, pressed = drive(world, seed, 160)
        away += [float(np.hypot(*step.facts["road"].T).min()) for step in seen]
        speed += [float(np.hypot(*step.facts["velocity"])) for step in seen]
        keys += pressed
    assert 0.02 < np.mean(np.array(away) > HALF_WIDTH) < 0.4
    assert 0.01 < np.mean(np.array(speed) < 0.5) < 0.25
    assert max(speed) > 35
    assert {"none", "w", "s", "a", "d", "w+a", "w+d"} <= set(keys)
    assert keys[:40] == drive(world, 0, 40)[1]


def test_the_facts_fit_the_picture(world):
    """The road is grey where the facts say that it is, and the view moves as the velocity says."""
    checked = 0
    for seed in range(2):
        for step in drive(world, seed, 60)[0][10::10]:
            for ahead, left in step.facts["road"]:
                # 0.89 pixels of 64 a metre; the car is at row 55, column 32.
                row, column = 54.9 - 1.481 * ahead, 32 - 1.481 * left
                if 3 < row < 50 and 3 < column < 60:
                    pixel = step.frame[round(row), round(column)].astype(int)
                    assert np.ptp(pixel) < 40, (seed, ahead, left, pixel)
                    checked += 1
    assert checked > 50


def test_pictures_that_nobody_sees_are_left_out_and_nothing_else(world):
    """Native steps that draw everything lead to the same picture."""
    plain = gymnasium.make("CarRacing-v3").unwrapped
    world.reset(3)
    seen, _ = plain.reset(seed=world.info["level_seed"])
    idle, gas = (np.array(native, np.float32) for native in ([0, 0, 0.03], [-0.35, 0.25, 0.03]))
    for _ in range(50):
        plain.step(idle)
    for _ in range(5):
        world.step(world.spec.actions.press("wa"))
        for _ in range(4):
            seen = plain.step(gas)[0]
    assert np.array_equal(world.env.unwrapped.state, seen)
    assert world.env.unwrapped.reward == plain.reward
    plain.close()


def test_a_region_of_the_picture_is_shown(world):
    frame = world.reset(0).frame
    whole = racing_facts.picture(world.env)
    assert (whole[90] == 0).any(), "the instruments are black"
    assert frame.any(axis=-1).all()
    part = cv2.resize(whole[:84, 6:90], (64, 64), interpolation=cv2.INTER_AREA)
    assert np.array_equal(frame, part)
    wrong = GymWorld(replace(load_preset("carracing"), region=(0, 20, 84, 84)))
    with pytest.raises(UserError, match=r"96 high and 96 wide.*leads out of them"):
        wrong.reset(0)
    wrong.close()


def facts(frames, bend, aside=0.0, speed=40.0, way=1):
    """Facts of a car beside the middle of a road that turns `bend` degrees a point."""
    yaw = np.radians(bend * np.arange(30))
    ahead = np.cumsum(3.5 * np.stack([np.cos(yaw), np.sin(yaw)], axis=1), axis=0)
    behind = -3.5 * np.arange(13)[::-1, None] * [1, 0]
    road = (np.concatenate([behind, ahead]) - [0, aside])[::way]
    velocity = np.array([speed, 0.0], np.float32)
    return {"road": np.stack([road] * frames), "velocity": np.stack([velocity] * frames)}


@pytest.mark.parametrize("way", [1, -1])
@pytest.mark.parametrize(
    ("given", "captions", "answers"),
    [
        ({"bend": 5}, {"the road bends left", "the car is fast"}, ["fast", "left", "yes"]),
        (
            {"bend": -5, "speed": 10},
            {"the road bends right", "the car is slow"},
            ["slow", "right", "yes"],
        ),
        (
            {"bend": 0, "speed": 0},
            {"the road is straight", "the car is still"},
            ["still", "straight", "yes"],
        ),
        (
            {"bend": 0, "aside": 12},
            {"the car is on the grass", "the car is fast"},
            ["fast", None, "no"],
        ),
        ({"bend": 2, "speed": 25}, set(), [None, None, "yes"]),  # neither one nor the other
    ],
)
def test_a_drive_is_told_as_it_is(given, captions, answers, way):
    idle = np.zeros(40, np.uint16)
    plain = Episode(
        np.zeros((41, 8, 8, 3), np.uint8), np.zeros((40, 3), np.float32), idle, {}, (), {}
    )
    episode = replace(plain, facts=facts(41, way=way, **given))
    said = [note for seed in range(8) for note in annotate(episode, CAR, seed)]
    told = {part for n in said if n.kind == "caption" for part in n.text.split(", ")}
    assert {part for part in told if not part.startswith("about to")} == captions
    asked = ("how fast is the car?", "where does the road go?", "is the car on the road?")
    expected = {(q, a) for q, a in zip(asked, answers, strict=True) if a}
    assert {(n.text, n.answer) for n in said if n.kind == "question"} == expected


def test_the_viewer_proposes_what_a_car_can_do():
    proposed = known_phrases(CAR)
    assert {"accelerate", "turn left", "brake"} <= set(proposed)
    assert not {"strafe left", "sidestep left", "leave the dark room", "go to the wall"} & set(
        proposed
    )
