import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from worldmodel.actions import IDLE_PHRASES, ActionTable
from worldmodel.datasets.store import EpisodeWriter
from worldmodel.envs import annotate, grammar, language, make_policy
from worldmodel.envs.doom.textures import THEMES
from worldmodel.envs.doom.world import SPEC, DoomWorld
from worldmodel.envs.grammar import GRAMMAR, RELATIONS, held_out, phrasings, reserved
from worldmodel.envs.gym_config import PRESETS, load_preset
from worldmodel.errors import UserError
from worldmodel.sequence import Text
from worldmodel.text import train_tokenizer
from worldmodel.train.data import Recordings, load_recordings
from worldmodel.train.samples import Mixture, Sampler
from worldmodel.world import Annotation, Episode, WorldSpec

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
    track = language._track(episode, SPEC.actions)
    return set(language.fulfilled(track, start, stop, names))


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
    scene = language.look(facts, 0, SPEC)
    asked = dict(language.questions(scene, np.random.default_rng(0)))
    assert asked["is it dark?"] == "yes"
    assert "what is ahead?" not in asked, "a green pillar ahead is reserved"
    assert asked["is the red torch left or right?"] == "left"
    assert asked["is the red torch near or far?"] == "near"
    assert asked["is the green pillar near or far?"] == "far"
    assert asked["which colour is the torch?"] == "red"
    assert asked["what are the walls?"] == THEMES[0].name
    asked = dict(language.questions(scene, np.random.default_rng(0), grammar.Style(open=True)))
    assert asked["what is ahead?"] == "a green pillar"
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
    told = [note for note in said if note.kind == "instruction"]
    first = next(note for note in told if note.stop <= 20)
    last = next(note for note in told if note.start >= 20)
    assert first.text in phrasings("forward")
    assert last.text in phrasings("right") + phrasings("around")
    for note in said:
        if note.kind != "instruction" and not 14 < note.start < 20:  # there both are done
            doing = "go forward" if note.start < 20 else "turn right"
            assert (note.text, note.answer) in [
                (f"about to {doing}", ""),
                ("what is about to be done?", doing),
            ]
    assert {note.kind for note in said} == {"caption", "question", "instruction"}


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
    asked = [note for note in said if note.kind == "question"]
    assert len(asked) == len(captions)
    for note in asked:
        assert note.text == "what is about to be done?"
        assert table.mask(table.parse(note.answer)) == keys[note.start]
    video = WorldSpec("video", ActionTable(()))
    unknown = np.full((len(keys), 3), np.nan, np.float32)
    assert annotate(replace(episode, actions=unknown, keys=keys * 0), video, 3) == ()
    empty = Episode(frames[:1], np.zeros((0, 3), np.float32), keys[:0], {}, (), {})
    assert annotate(empty, spec, 3) == ()


def partial(steps, facts, **more):
    """An episode that turns to the left, with these facts only."""
    whole = synthetic(steps, pose=pose(steps, dyaw=11.25), **more)
    return replace(whole, facts={name: whole.facts[name] for name in facts})


def texts(said, kind):
    return {note.text for note in said if note.kind == kind}


def test_a_world_tells_whatever_its_facts_know():
    only_pose = annotate(partial(24, ["pose"]), SPEC, 0)
    assert texts(only_pose, "caption") == {"about to turn left"}
    assert texts(only_pose, "question") == {"what is about to be done?"}
    assert texts(only_pose, "instruction") <= {*phrasings("left"), *phrasings("around")}

    wall = np.r_[np.full(12, 1.0), np.full(13, 30.0)].astype(np.float32)
    with_wall = annotate(partial(24, ["pose", "wall"], wall=wall), SPEC, 0)
    assert texts(with_wall, "caption") == {"a wall right ahead", "open space ahead"}
    for note in with_wall:
        if note.kind == "question":
            assert note.text == "what is ahead?"
            assert note.answer == ("a wall" if note.start < 12 else "nothing near")

    with_free = annotate(partial(24, ["pose", "free"], free=wall), SPEC, 0)
    assert texts(with_free, "caption") == {"something right ahead", "open space ahead"}
    for note in with_free:
        if note.kind == "question":
            assert note.text == "is it free ahead?", "what it is, nobody knows"
            assert note.answer == ("no" if note.start < 12 else "yes")

    bearing = np.full((25, len(SPEC.objects)), np.nan, np.float32)
    bearing[:, RED] = 30.0
    distance = np.where(np.isnan(bearing), np.nan, 6.0).astype(np.float32)
    placed = partial(24, ["bearing", "distance"], bearing=bearing, distance=distance)
    said = {annotation for seed in range(9) for annotation in annotate(placed, SPEC, seed)}
    assert texts(said, "caption") == {"a red torch on the left"}
    asked = texts(said, "question")
    assert {"where is the red torch?", "which colour is the torch?"} <= asked
    assert not {"is it dark?", "what is ahead?"} & asked, "light and wall are not known"

    lit = annotate(partial(24, ["light"], light=np.full(25, 0.1, np.float32)), SPEC, 0)
    assert texts(lit, "caption") == {"a dark place"}, "nobody said that it is a room"


def test_a_display_is_read_out():
    lives = np.r_[np.full(20, 5), np.full(21, 3)].astype(np.float32)
    facts = {"lives_left": lives, "speed": np.full(41, 0.5, np.float32), "map": np.ones((41, 2))}
    episode = replace(synthetic(40), facts=facts)
    said = annotate(episode, WorldSpec("game", SPEC.actions), 0)
    for note in said:
        count = "5" if note.start < 20 else "3"
        if note.kind == "caption":
            assert note.text == f"lives left {count}"
        elif note.kind == "question":
            assert (note.text, note.answer) == ("what is the lives left count?", count)


def test_a_description_of_a_world_keeps_its_themes_and_needs_none():
    assert WorldSpec.from_json(SPEC.to_json()) == SPEC
    assert SPEC.themes == tuple(theme.name for theme in THEMES)
    plain = WorldSpec("plain", SPEC.actions)
    assert "themes" not in plain.to_json()  # as stores and checkpoints were written before
    assert WorldSpec.from_json(plain.to_json()) == plain


SLOTS = {
    "object": SPEC.objects, "noun": ("torch",), "light": ("dark", "dim", "bright"),
    "place": ("room", "corridor", "place"), "walls": SPEC.themes, "range": ("", "near ", "far "),
    "side": ("ahead", "on the left", "on the right"), "name": ("health",), "value": ("7",),
    "bend": ("bends left", "bends right", "is straight"), "pace": ("still", "slow", "fast"),
    "phrase": ("go forward", "turn left and fire"),
}  # fmt: skip


def filled(form):
    """The form with all values of its slots."""
    names = re.findall(r"\{(\w+)\}", form)
    for values in itertools.product(*(SLOTS[name] for name in names)):
        yield form.format(**dict(zip(names, values, strict=True)))


def words(texts):
    return {word.strip("?:,") for text in texts for word in text.split()}


def test_held_out_phrasings_are_told_from_those_that_are_trained_on():
    seen = {text for forms in GRAMMAR.values() for form in forms.seen for text in filled(form)}
    keys = [row for name in PRESETS for row in load_preset(name).rows]
    actions = {*(p for row in keys for p in row.row.phrases), *IDLE_PHRASES}
    actions |= {phrase for row in SPEC.actions.rows for phrase in row.phrases}
    assert not [text for text in seen | actions if held_out(text) == "phrasing"]
    for kind, forms in GRAMMAR.items():
        assert len(forms.held_out) == 2
        for form in forms.held_out:
            for text in filled(form):
                assert text not in seen | actions
                assert held_out(text) == "phrasing", text
                if kind in grammar.CAPTIONS:  # one part of two is enough
                    assert held_out(f"a dark room, {text}") == "phrasing"
        rearranged, new = (
            form.format(**{k: v[0] for k, v in SLOTS.items()}) for form in forms.held_out
        )
        assert words([rearranged]) <= words(seen), "this form has only words that are trained on"
        assert words([new]) - words(seen), "this form has a new word"
    assert len(GRAMMAR) == len(grammar.INSTRUCTIONS) + len(grammar.CAPTIONS) + len(
        grammar.QUESTIONS
    )
    assert held_out("drive to the harbour") is None
    with pytest.raises(UserError, match="Did you mean 'goto'"):
        phrasings("gotto")


def test_combinations_are_reserved_for_every_relation_and_leave_much_of_every_object():
    pairs = grammar.combinations(SPEC.objects)
    assert {relation for relation, _ in pairs} == set(RELATIONS)
    assert {thing for _, thing in pairs} == set(SPEC.objects)
    for thing in SPEC.objects:
        assert sum(reserved(r, thing) for r in RELATIONS) <= 2
    for relation in RELATIONS:
        assert sum(reserved(relation, thing) for thing in SPEC.objects) <= 3
    assert held_out("go to the green pillar") == "combination"
    assert held_out("look at the green pillar") is None
    assert held_out("go to the red pillar") is None
    assert held_out("where is the grey statue?", "left") == "combination"
    assert held_out("where is the grey statue?", "right") is None
    assert held_out("a dark room, a grey statue far on the right") == "combination"
    assert held_out("is there a grey statue?", "no") is None
    assert held_out("what is ahead?", "a yellow lamp") == "combination"
    assert held_out("what is ahead?", "a wall") is None
    for text in ("go to the wall", "a dark room, a wall right ahead", "turn to the left"):
        assert not list(grammar.claims(text))


def cases():
    """Short episodes in which, taken together, everything happens that can be spoken of."""
    count = len(SPEC.objects)
    for motion in (
        *({"dyaw": turn} for turn in (11.25, -11.25, 22.5)),
        *({"dx": dx, "dyaw": turn} for dx in (0.5, -0.5) for turn in (0.0, 11.25, -11.25)),
        {"dy": 0.5}, {"dy": -0.5}, {},
    ):  # fmt: skip
        yield synthetic(8, pose=pose(8, **motion)), SPEC
    for theme, light, wall in itertools.product((-1, 2), (0.1, 0.9), (1.0, 20.0)):
        change = np.linspace(light, 1 - light, 9).round(0).clip(0.1, 0.9).astype(np.float32)
        facts = {"theme": np.full(9, theme), "wall": np.full(9, wall, np.float32), "light": change}
        yield synthetic(8, **facts), SPEC
    hall = WorldSpec("hall", SPEC.actions)  # knows what is in the way, but not what it is
    yield replace(synthetic(8), facts={"free": np.linspace(1, 20, 9, dtype=np.float32)}), hall
    nearing = np.linspace(6, 1, 9).astype(np.float32)
    yield synthetic(8, pose=pose(8, dx=0.7), wall=nearing), SPEC
    swing = np.r_[[np.nan] * 5, 22.5, 11.25, 5, 0]
    for k in range(count):
        for bearing, distance, moved in (
            (3.0, np.linspace(7, 2, 9), {"dx": 0.7}),
            (3.0, np.linspace(9, 5, 9), {"dx": 0.6}),
            (swing, 5.0, {"dyaw": 11.25}),
            (swing[::-1], 5.0, {"dyaw": -11.25}),
            *((side, metres, {}) for side in (30.0, 0.0, -30.0) for metres in (2.0, 12.0)),
        ):
            seen = np.full((9, count), np.nan, np.float32)
            seen[:, k] = bearing
            far = np.where(np.isnan(seen), np.nan, np.resize(distance, 9)[:, None])
            more = {"bearing": seen, "distance": far.astype(np.float32)}
            yield synthetic(8, pose=pose(8, **moved), **more), SPEC
    car = WorldSpec("car", ActionTable(tuple(row.row for row in load_preset("carracing").rows)))
    driven = replace(synthetic(8), keys=np.full(8, 1, np.uint16), facts={})
    yield driven, car
    yield replace(driven, facts={"lives": np.full(9, 3, np.float32)}), car
    road = np.stack([3.5 * np.arange(-12.0, 19), np.zeros(31)], axis=1)
    for aside in (0, 12):  # on the road, and beside it
        facts = {"road": np.stack([road - [0, aside]] * 9), "velocity": np.full((9, 2), 40.0)}
        yield replace(driven, facts=facts), car


def test_what_is_reserved_is_never_in_train_and_all_of_it_is_in_val():
    phrased, combined = set(), set()
    for case, (episode, spec) in enumerate(cases()):
        objects = "distance" in episode.facts and not np.isnan(episode.facts["distance"]).all()
        for number in range(12 if objects else 60):
            seed = 1000 * case + number
            for split in ("train", "video")[: 2 if number < 3 else 0]:
                said = annotate(replace(episode, info={"split": split}), spec, seed)
                assert said
                assert not [note for note in said if held_out(note.text, note.answer)]
            for note in annotate(replace(episode, info={"split": "val"}), spec, seed):
                why = held_out(note.text, note.answer)
                pairs = {p for p in grammar.claims(note.text, note.answer) if reserved(*p)}
                if why == "phrasing":
                    parts = (note.text, *note.text.split(", "))
                    phrased |= {
                        form
                        for forms in GRAMMAR.values()
                        for form in forms.held_out
                        if any(grammar._pattern(form).fullmatch(part) for part in parts)
                    }
                    assert not pairs, "what is reserved comes one at a time"
                else:
                    assert (why == "combination") == bool(pairs)
                    combined |= pairs
    assert {form for forms in GRAMMAR.values() for form in forms.held_out} - phrased == set()
    assert combined == set(grammar.combinations(SPEC.objects))


def test_reserved_sentences_are_true_of_the_frames_as_well(recorded):
    told = 0
    for episode in recorded:
        bearing, distance = episode.facts["bearing"], episode.facts["distance"]
        for note in annotate(replace(episode, info={"split": "val"}), SPEC, 5):
            assert len(note.text.split()) <= 15
            for relation, thing in grammar.claims(note.text, note.answer):
                k = SPEC.objects.index(thing)
                told += bool(held_out(note.text, note.answer))
                side, far = bearing[note.start, k], distance[note.start, k]
                assert {
                    "left": side >= language.ASIDE, "right": side <= -language.ASIDE,
                    "ahead": abs(side) < language.ASIDE, "near": far < language.NEAR,
                    "far": far >= language.FAR, "goto": distance[note.stop, k] < 2.6,
                    "toward": distance[note.stop, k] < far, "look": abs(bearing[note.stop, k]) < 7,
                    "find": not np.isnan(distance[note.stop, k]), "away": not np.isnan(far),
                }[relation], note  # fmt: skip
    assert told > 20


def test_training_drops_what_is_reserved_whoever_wrote_it(tmp_path):
    notes = tuple(
        Annotation(kind, 1, stop, text, answer)
        for kind, stop, text, answer in [
            ("caption", 1, "a dark room", ""),
            ("caption", 1, "the room is dark", ""),
            ("caption", 1, "a grey statue on the left", ""),
            ("question", 1, "where is the grey statue?", "left"),
            ("question", 1, "where is the grey statue?", "right"),
            ("instruction", 7, "go to the green pillar", ""),
            ("instruction", 7, "escape the gloom", ""),
            ("instruction", 7, "turn left", ""),
        ]
    )
    free = tuple(note for note in notes if not held_out(note.text, note.answer))
    assert [note.text for note in free] == ["a dark room", "where is the grey statue?", "turn left"]
    for split in ("train", "val"):
        info = {"seed": 0, "split": split}
        episode = replace(synthetic(8), annotations=notes, info=info)
        EpisodeWriter(tmp_path / "x.zarr", SPEC).write(episode)
    loaded = load_recordings(str(tmp_path / "x.zarr"), "train")
    assert loaded.annotations == (free,)
    # A sampler is given recordings from elsewhere.
    whole = Recordings(SPEC, loaded.frames, loaded.keys, loaded.actions, loaded.starts, (notes,))
    tokenizer = train_tokenizer([note.text for note in notes] * 9, 300)
    sampler, rng = Sampler(whole, tokenizer, Mixture(text=0)), np.random.default_rng(0)
    spans = [span for _ in range(400) for span in sampler.draw(rng)[1] if isinstance(span, Text)]
    said = {tokenizer.decode(span.ids) for span in spans if span.role != "action"}
    expected = {f"{note.kind}: {note.text}" for note in free if note.kind != "question"}
    assert said == expected | {"question: where is the grey statue? answer: right"}
