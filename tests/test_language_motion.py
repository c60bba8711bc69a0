"""Sentences about motion: counted in a world's own strides, and for doom as they always were."""

import hashlib
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worldmodel.actions import ActionTable
from worldmodel.envs import annotate, language
from worldmodel.envs.doom.world import SPEC
from worldmodel.envs.grammar import GRAMMAR, phrasings
from worldmodel.envs.habitat.config import HabitatConfig, action_table
from worldmodel.world import Episode, WorldSpec


def path_of(actions):
    """Poses [T+1, 3] of an agent that nothing stops."""
    path = np.zeros((len(actions) + 1, 3))
    for t, act in enumerate(actions):
        angle = np.radians(path[t, 2] + act.dyaw / 2)
        ahead, left = (
            np.array([np.cos(angle), np.sin(angle)]),
            np.array([-np.sin(angle), np.cos(angle)]),
        )
        path[t + 1, :2] = path[t, :2] + act.dx * ahead + act.dy * left
        path[t + 1, 2] = path[t, 2] + act.dyaw
    return path.astype(np.float32)


def episode_of(actions, table, **facts):
    moved = np.array([(a.dx, a.dy, a.dyaw) for a in actions], np.float32)
    keys = np.array([table.mask(a) for a in actions], np.uint16)
    frames = np.zeros((len(actions) + 1, 8, 8, 3), np.uint8)
    facts = {"pose": path_of(actions)} | facts
    return Episode(frames, moved, keys, facts, (), {"split": "train"})


def wander(seed, steps=160):
    """An episode that presses doom's keys for a while each, among things that are made up."""
    table, rng = SPEC.actions, np.random.default_rng(seed)
    held, actions = (), []
    for _ in range(steps):
        if rng.random() < 0.2:
            held = tuple(rng.choice(table.keys, int(rng.integers(3)), replace=False).tolist())
        actions.append(table.press(held))
    rows, count = steps + 1, len(SPEC.objects)
    slow = np.repeat(rng.random((rows // 8 + 1, 2 + 3 * count)), 8, axis=0)[:rows]
    near = np.where(slow[:, 2 : 2 + count] < 0.15, 1 + 14 * slow[:, 2 + count : -count], np.nan)
    told = {
        "light": slow[:, 0],
        "wall": 12 * slow[:, 1],
        "theme": np.floor(4 * slow[:, 0]) - 1,
        "distance": near,
        "bearing": np.where(np.isnan(near), np.nan, 80 * slow[:, -count:] - 40),
    }
    return episode_of(actions, table, **{name: v.astype(np.float32) for name, v in told.items()})


def test_dooms_sentences_stay_as_they_are():
    """What a model was trained on; a change of wording or of a threshold changes the digest."""
    episodes = [wander(seed) for seed in range(8)]
    episodes += [replace(e, info={"split": "val"}) for e in episodes[:4]]
    said = [annotate(e, SPEC, seed) for seed, e in enumerate(episodes)]
    kinds = {note.kind for notes in said for note in notes}
    assert kinds == {"caption", "question", "instruction"}
    assert sum(len(notes) for notes in said) > 800
    digest = hashlib.sha256(repr(said).encode()).hexdigest()
    assert digest[:16] == "17bdf63071aa3098"


@pytest.mark.parametrize(
    ("stride", "turn"), [(0.25, 15.0), (0.3, 30.0), (0.1, 5.0), (1.0, 90.0), (2.0, 11.25)]
)
def test_every_worlds_stride_gives_its_movement_phrases(stride, turn):
    table = ActionTable(
        tuple(
            replace(
                row,
                dx=2 * stride * row.dx,
                dy=2 * stride * row.dy,
                dyaw=turn * float(np.sign(row.dyaw)),
            )
            for row in SPEC.actions.rows
        )
    )
    spec = WorldSpec("other", table)
    motions = {"w": "forward", "s": "back", "q": "strafe left", "e": "strafe right", "": "still"}
    if turn * 6 < 140:
        motions |= {"a": "left", "d": "right", "wa": "forward left", "wd": "forward right"}
    for keys, kind in motions.items():
        walk = episode_of([table.press(keys)] * 24, table)
        track = language._track(walk, table)
        found = {k for n in (6, 8, 10, 12) for k, _ in language.fulfilled(track, 0, n, ())}
        assert found - {"around"} == {kind}, keys
        told = {note.text for note in annotate(walk, spec, 1) if note.kind == "caption"}
        assert not told or told == {f"about to {phrasings(kind)[0]}"}


def test_what_is_about_to_be_done_is_what_is_done_first():
    """A clip of four short steps and a turn counts as a turn, but it begins with a walk."""
    table = action_table(HabitatConfig())
    held = ["w"] * 4 + ["a"] * 4 + ["w"] * 8 + [""] * 8
    walk, spec = episode_of([table.press(k) for k in held], table), WorldSpec("flat", table)
    done = {"w": "go forward", "a": "turn left", "": "stand still"}
    said = [n for seed in range(30) for n in annotate(walk, spec, seed) if n.kind == "caption"]
    for note in said:
        assert note.text == f"about to {done[held[note.start]]}", note
    assert {note.text.removeprefix("about to ") for note in said} == set(done.values())


def test_the_page_shows_the_grammar_as_it_is():
    docs = Path(__file__).parents[1] / "docs"
    page = (docs / "data.md").read_text(encoding="utf-8")
    script = runpy.run_path(str(docs / "make_grammar.py"))
    assert script["with_tables"](page) == page, "run `python docs/make_grammar.py`"
    assert all(form in page for forms in GRAMMAR.values() for form in forms.held_out)
