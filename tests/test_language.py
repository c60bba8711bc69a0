import numpy as np
import pytest

from worldmodel.actions import ActionTable
from worldmodel.envs import annotate, language, make_policy
from worldmodel.envs.doom.textures import THEMES
from worldmodel.envs.doom.world import SPEC, DoomWorld
from worldmodel.envs.gym_config import load_preset
from worldmodel.world import Episode, WorldSpec

RED, GREEN = SPEC.objects.index("red torch"), SPEC.objects.index("green pillar")


def synthetic(steps, **facts):
    """An episode that stands still in a bright room with nothing in sight, but for `facts`."""
    count = len(SPEC.objects)
    rows = steps + 1
    base = {
        "pose": np.zeros((rows, 3), np.float32),
        "light": np.ones(rows, np.float32),
        "wall": np.full(rows, 6.0, np.float32),
        "bearing": np.full((rows, count), np.nan, np.float32),
        "distance": np.full((rows, count), np.nan, np.float32),
    }
    return Episode(
        np.zeros((rows, 64, 64, 3), np.uint8),
        np.zeros((steps, 3), np.float32),
        np.zeros(steps, np.uint16),
        base | facts,
        (),
        {},
    )


def kinds(episode, start=0, stop=None, names=SPEC.objects):
    stop = episode.num_steps if stop is None else stop
    return set(language.fulfilled(language._track(episode), start, stop, names))


def pose(steps, dx=0.0, dy=0.0, dyaw=0.0):
    out = np.zeros((steps + 1, 3), np.float32)
    for t in range(steps):
        x, y, yaw = out[t]
        middle = np.radians(yaw + dyaw / 2)
        out[t + 1] = (
            x + dx * np.cos(middle) - dy * np.sin(middle),
            y + dx * np.sin(middle) + dy * np.cos(middle),
            (yaw + dyaw) % 360,
        )
    return out


@pytest.mark.parametrize(
    ("motion", "kind"),
    [
        ({"dyaw": 11.25}, "left"),
        ({"dyaw": -11.25}, "right"),
        ({"dx": 0.5}, "forward"),
        ({"dx": -0.5}, "back"),
        ({"dy": 0.5}, "strafe left"),
        ({"dy": -0.5}, "strafe right"),
        ({"dx": 0.5, "dyaw": 11.25}, "forward left"),
        ({"dx": 0.5, "dyaw": -11.25}, "forward right"),
        ({}, "still"),
    ],
)
def test_each_motion_gives_its_instruction_and_no_other(motion, kind):
    assert kinds(synthetic(8, pose=pose(8, **motion))) == {(kind, "")}


def test_half_turn_is_turning_around():
    assert ("around", "") in kinds(synthetic(16, pose=pose(16, dyaw=11.25)))


def test_walking_to_an_object():
    distance = np.full((11, len(SPEC.objects)), np.nan, np.float32)
    bearing = distance.copy()
    distance[:, RED], bearing[:, RED] = np.linspace(7, 2, 11), 3.0
    walk = synthetic(10, pose=pose(10, dx=0.5), distance=distance, bearing=bearing)
    assert ("goto", "red torch") in kinds(walk)
    away = synthetic(10, pose=pose(10, dx=-0.5), distance=distance[::-1], bearing=bearing)
    assert ("goto", "red torch") not in kinds(away)


def test_looking_at_finding_and_turning_away():
    bearing = np.full((9, len(SPEC.objects)), np.nan, np.float32)
    bearing[5:, RED] = [33.75, 22.5, 11.25, 0.0]
    distance = np.where(np.isnan(bearing), np.nan, 5.0).astype(np.float32)
    turn = synthetic(8, pose=pose(8, dyaw=11.25), bearing=bearing, distance=distance)
    assert {("look", "red torch"), ("find", "red torch")} <= kinds(turn)
    back = synthetic(8, pose=pose(8, dyaw=-11.25), bearing=bearing[::-1], distance=distance[::-1])
    assert ("away", "red torch") in kinds(back)
    assert ("look", "red torch") not in kinds(back)


def test_light_and_dark():
    light = np.array([0.25] * 5 + [0.9] * 4, np.float32)
    assert ("lighten", "") in kinds(synthetic(8, light=light))
    assert ("darken", "") in kinds(synthetic(8, light=light[::-1]))
    assert kinds(synthetic(8, light=np.full(9, 0.25, np.float32))) == {("still", "")}


def test_going_to_the_wall():
    wall = np.linspace(6, 1, 11).astype(np.float32)
    assert ("wall", "") in kinds(synthetic(10, pose=pose(10, dx=0.5), wall=wall))


def test_questions_are_answered_truly():
    bearing = np.full((2, len(SPEC.objects)), np.nan, np.float32)
    bearing[:, RED], bearing[:, GREEN] = 20.0, -2.0
    distance = np.where(np.isnan(bearing), np.nan, 2.0).astype(np.float32)
    distance[:, GREEN] = 12.0
    facts = synthetic(
        1,
        bearing=bearing,
        distance=distance,
        light=np.full(2, 0.2, np.float32),
        theme=np.zeros(2, np.float32),
    ).facts
    scene = language.look(facts, 0, SPEC.objects)
    asked = dict(language.questions(scene, np.random.default_rng(0)))
    assert asked["is it dark?"] == "yes"
    assert asked["what is ahead?"] == "a green pillar"
    assert asked["is the red torch left or right?"] == "left"
    assert asked["is the red torch near or far?"] == "near"
    assert asked["is the green pillar near or far?"] == "far"
    assert asked["which colour is the torch?"] == "red"
    assert asked["what are the walls?"] == THEMES[0].name
    no = [q for q, a in asked.items() if q.startswith("is there") and a == "no"]
    assert len(no) == 1
    assert not any(name in no[0] for name in ("red torch", "green pillar"))


@pytest.fixture(scope="module")
def recorded():
    world = DoomWorld(native=120)
    episodes = []
    for seed in range(4):
        steps, actions = [world.reset(seed)], []
        policy = make_policy("mix", seed)
        for _ in range(200):
            actions.append(policy.act(steps[-1], world.spec))
            steps.append(world.step(actions[-1]))
        episodes.append(
            Episode(
                np.stack([s.frame for s in steps]),
                np.array([(a.dx, a.dy, a.dyaw) for a in actions], np.float32),
                np.array([world.spec.actions.mask(a) for a in actions], np.uint16),
                {name: np.stack([s.facts[name] for s in steps]) for name in steps[0].facts},
                (),
                {},
            )
        )
    world.close()
    return episodes


def test_sentences_have_the_promised_form(recorded):
    for episode in recorded:
        said = annotate(episode, SPEC, 1)
        assert said == annotate(episode, SPEC, 1)
        covered = np.zeros(episode.num_steps, bool)
        for note in said:
            assert note.text.isascii()
            assert note.text == note.text.lower()
            assert 1 <= len(note.text.split()) <= 12
            assert "\n" not in note.text
            assert 0 <= note.start <= note.stop <= episode.num_steps
            assert bool(note.answer) == (note.kind == "question")
            if note.kind == "instruction":
                assert 6 <= note.stop - note.start <= 24
                covered[note.start : note.stop] = True
            else:
                assert note.start == note.stop
        of_kind = {k: sum(n.kind == k for n in said) for k in ("caption", "question")}
        assert all(20 <= count <= 30 for count in of_kind.values())
        assert covered.mean() > 0.6


def test_sentences_name_only_what_the_facts_show(recorded):
    for episode in recorded:
        for note in annotate(episode, SPEC, 2):
            named = [k for k, name in enumerate(SPEC.objects) if name in note.text]
            seen = ~np.isnan(episode.facts["distance"])
            for k in named:
                if note.kind == "caption" or note.answer in ("yes", "left", "right", "ahead"):
                    assert seen[note.start, k], note
                elif note.answer == "no":
                    assert not seen[note.start, k], note
                elif note.kind == "instruction":
                    assert seen[note.start, k] or seen[note.stop, k], note
            light = episode.facts["light"]
            if note.kind != "instruction":
                if "dark room" in note.text or "dark corridor" in note.text:
                    assert light[note.start] < language.DARK
            elif "leave the dark" in note.text or "out of the shadow" in note.text:
                assert light[note.start] < language.DARK < light[note.stop]


def test_a_world_without_facts_gets_phrases_from_its_actions():
    actions = np.zeros((40, 3), np.float32)
    actions[:20, 0], actions[20:, 2] = 0.5, -11.25
    bare = Episode(np.zeros((41, 8, 8, 3), np.uint8), actions, np.zeros(40, np.uint16), {}, (), {})
    said = annotate(bare, WorldSpec("other", SPEC.actions), 0)
    assert said
    assert {note.kind for note in said} == {"instruction"}
    first = next(note for note in said if note.stop <= 20)
    last = next(note for note in said if note.start >= 20)
    assert first.text in language._PHRASES["forward"]
    assert last.text in language._PHRASES["right"] + language._PHRASES["around"]


def test_keys_give_sentences_where_there_are_no_facts():
    table = ActionTable(tuple(row.row for row in load_preset("carracing").rows))
    spec = WorldSpec("car", table)
    masks = [table.mask(table.press(k)) for k in ["w"] * 10 + ["wa"] * 5 + ["s"] * 2 + [""] * 30]
    keys = np.array(masks, np.uint16)
    frames = np.zeros((len(keys) + 1, 8, 8, 3), np.uint8)
    episode = Episode(frames, np.zeros((len(keys), 3), np.float32), keys, {}, (), {})
    said = annotate(episode, spec, 3)
    assert said == annotate(episode, spec, 3)
    told = [note for note in said if note.kind == "instruction"]
    assert [(n.start, n.stop) for n in told] == [(0, 10), (10, 15), (17, 41), (41, 47)]
    assert table.parse(told[0].text).keys == ("w",)
    assert table.parse(told[1].text).keys == ("w", "a")
    assert table.parse(told[2].text).idle
    captions = [note for note in said if note.kind == "caption"]
    assert 4 <= len(captions) <= 9
    for note in captions:
        meant = table.parse(note.text.removeprefix("about to "))
        assert table.mask(meant) == keys[note.start]
    video = WorldSpec("video", ActionTable(()))
    assert annotate(episode, video, 3) == ()
    empty = Episode(frames[:1], np.zeros((0, 3), np.float32), keys[:0], {}, (), {})
    assert annotate(empty, spec, 3) == ()
