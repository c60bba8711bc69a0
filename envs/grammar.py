"""The words of every sentence, and the part of them that is reserved for evaluation.

`GRAMMAR` lists the productions: what is said, in the wordings that are trained on and in others
that are not; slots stand in braces. Two things are reserved for evaluation:

- **held-out phrasings**: of each production the first rearranges words that trained sentences
  use, the second has a word that they never use;
- **held-out combinations** of an object and a relation, picked by a hash (`reserved`): "go to
  the red torch" and "look at the green pillar" are trained on, "go to the green pillar" is not.

What is reserved is known from a sentence alone (`held_out`), so it can be left out of any store,
whoever wrote it and when.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np

from worldmodel.errors import UserError, suggest

RELATIONS = ("goto", "toward", "look", "find", "away", "left", "ahead", "right", "near", "far")
"""What an object can be said to have to do with the agent."""

SPLITS = ("val", "test")
"""Splits whose episodes may carry what is reserved; also as the end of a name, 'video_val'."""

_ONE_IN = 8  # combinations that are reserved
_SALT = "worldmodel/1/925/"  # of doom's objects each has one or two, each relation one to three
_FRESH = 0.25  # share of a val split's sentences in held-out phrasings


@dataclass(frozen=True)
class Forms:
    """The wordings of one production: those that are trained on, and those that never are."""

    seen: tuple[str, ...]
    held_out: tuple[str, ...]


def _forms(*seen: str, held_out: tuple[str, str]) -> Forms:
    return Forms(seen, held_out)


INSTRUCTIONS: Mapping[str, Forms] = {
    "left": _forms(
        "turn left", "look to the left", "rotate left",
        held_out=("make a turn to the left", "swing left"),
    ),
    "right": _forms(
        "turn right", "look to the right", "rotate right",
        held_out=("make a turn to the right", "swing right"),
    ),
    "around": _forms(
        "turn around", "look behind you", "make a half turn",
        held_out=("turn and look behind you", "spin around"),
    ),
    "forward": _forms(
        "go forward", "walk straight ahead", "keep going forward", "move ahead",
        held_out=("move straight forward", "advance"),
    ),
    "back": _forms(
        "step back", "go backward", "back up", "walk backward",
        held_out=("move backward", "retreat"),
    ),
    "strafe left": _forms(
        "step to the left", "sidestep left", "strafe left",
        held_out=("sidestep to the left", "shift left"),
    ),
    "strafe right": _forms(
        "step to the right", "sidestep right", "strafe right",
        held_out=("sidestep to the right", "shift right"),
    ),
    "forward left": _forms(
        "go forward and turn left", "walk in a curve to the left",
        held_out=("turn left and keep going forward", "bend left while walking"),
    ),
    "forward right": _forms(
        "go forward and turn right", "walk in a curve to the right",
        held_out=("turn right and keep going forward", "bend right while walking"),
    ),
    "still": _forms(
        "stand still", "wait", "do not move", "stay where you are",
        held_out=("stand where you are", "freeze"),
    ),
    "wall": _forms(
        "go to the wall", "walk up to the wall", "go forward to the wall",
        held_out=("move up to the wall", "head for the wall"),
    ),
    "lighten": _forms(
        "leave the dark room", "get out of the shadow", "go into the light",
        "leave the darkness", "go to a brighter place",
        held_out=("get out of the dark", "escape the gloom"),
    ),
    "darken": _forms(
        "go into the dark", "enter the dark room", "go into the shadow", "hide in the dark",
        held_out=("enter the dark", "sneak into the gloom"),
    ),
    "goto": _forms(
        "walk to the {object}", "go to the {object}", "approach the {object}",
        "move up to the {object}",
        held_out=("move to the {object}", "head for the {object}"),
    ),
    "toward": _forms(
        "walk toward the {object}", "go toward the {object}", "get closer to the {object}",
        held_out=("move closer to the {object}", "advance on the {object}"),
    ),
    "look": _forms(
        "look at the {object}", "turn to the {object}", "face the {object}",
        held_out=("turn and look at the {object}", "gaze at the {object}"),
    ),
    "find": _forms(
        "find the {object}", "search for the {object}", "look for the {object}",
        held_out=("look around for the {object}", "locate the {object}"),
    ),
    "away": _forms(
        "turn away from the {object}", "look away from the {object}",
        held_out=("face away from the {object}", "shun the {object}"),
    ),
    # Where only the keys are known; {phrase} is what the world's action table says.
    "keys": _forms("{phrase}", held_out=("move ahead: {phrase}", "next move: {phrase}")),
}  # fmt: skip

CAPTIONS: Mapping[str, Forms] = {
    "place": _forms(
        "a {light} {place}", held_out=("the {place} is {light}", "some {light} {place}")
    ),
    "walls": _forms(
        "{light} room, {walls} walls",
        held_out=("{light} room of {walls} walls", "{light} chamber in {walls}"),
    ),
    "object": _forms(
        "a {object} {range}{side}",
        held_out=("there is a {object} {range}{side}", "spot a {object} {range}{side}"),
    ),
    "blocked": _forms(
        "a wall right ahead", held_out=("right ahead is a wall", "a wall blocks the way")
    ),
    "obstructed": _forms(
        "something right ahead",
        held_out=("right ahead is something", "an obstacle right ahead"),
    ),
    "open": _forms("open space ahead", held_out=("ahead is open space", "nothing blocks the way")),
    "road": _forms("the road {bend}", held_out=("ahead the road {bend}", "the track {bend}")),
    "off": _forms(
        "the car is on the grass",
        held_out=("on the grass is the car", "the car is off the tarmac"),
    ),
    "pace": _forms("the car is {pace}", held_out=("{pace} is the car", "the vehicle is {pace}")),
    "count": _forms("{name} {value}", held_out=("the {name} is {value}", "{name} shows {value}")),
    "doing": _forms("about to {phrase}", held_out=("to be done is {phrase}", "soon to {phrase}")),
}

QUESTIONS: Mapping[str, Forms] = {
    "ahead?": _forms("what is ahead?", held_out=("what is there ahead?", "what stands in front?")),
    "free?": _forms(
        "is it free ahead?", held_out=("is there free space ahead?", "can one walk on?")
    ),
    "dark?": _forms("is it dark?", held_out=("is it a dark place?", "are the lights off?")),
    "light?": _forms(
        "how bright is it?", held_out=("how bright is the place?", "what is the light like?")
    ),
    "walls?": _forms(
        "what are the walls?", held_out=("which walls are there?", "what covers the walls?")
    ),
    "there?": _forms(
        "is there a {object}?", held_out=("is a {object} there?", "can you spot a {object}?")
    ),
    "where?": _forms(
        "where is the {object}?",
        held_out=("where is there a {object}?", "which way is the {object}?"),
    ),
    "side?": _forms(
        "is the {object} left or right?",
        held_out=("is the {object} right or left?", "on which hand is the {object}?"),
    ),
    "range?": _forms(
        "is the {object} near or far?",
        held_out=("is the {object} far or near?", "how distant is the {object}?"),
    ),
    "colour?": _forms(
        "which colour is the {noun}?",
        held_out=("what colour is the {noun}?", "which hue has the {noun}?"),
    ),
    "road?": _forms(
        "where does the road go?",
        held_out=("where does the road ahead go?", "where does the track lead?"),
    ),
    "off?": _forms(
        "is the car on the road?",
        held_out=("is the car there on the road?", "does the car keep to the tarmac?"),
    ),
    "pace?": _forms(
        "how fast is the car?", held_out=("how fast is it?", "at what pace goes the car?")
    ),
    "count?": _forms(
        "what is the {name} count?",
        held_out=("which count is the {name}?", "how much {name} remains?"),
    ),
    "doing?": _forms(
        "what is about to be done?", held_out=("what is to be done?", "what happens next?")
    ),
}

GRAMMAR: Mapping[str, Forms] = {**INSTRUCTIONS, **CAPTIONS, **QUESTIONS}

_AHEAD = (*QUESTIONS["ahead?"].seen, *QUESTIONS["ahead?"].held_out)
_SLOTS = {
    "object": r"(?!(?:wall|left|right)\??$)[a-z0-9][a-z0-9 '-]*?",  # not: go to the wall
    "noun": r"[a-z0-9'-]+",
    "light": "dark|dim|bright",
    "place": "room|corridor|place",
    "walls": r"[a-z][a-z '-]*",
    "range": "near |far |",
    "side": "ahead|on the left|on the right",
    "bend": "bends left|bends right|is straight",
    "pace": "still|slow|fast",
    "name": r"[a-z][a-z0-9 ]*",
    "value": r"\d+",
    "phrase": ".+",
}


@dataclass(frozen=True)
class Style:
    """How a sentence may be put.

    Attributes:
        fresh: in held-out phrasings, instead of those that are trained on.
        open: also about reserved combinations.
    """

    fresh: bool = False
    open: bool = False

    def say(self, kind: str, rng: np.random.Generator, **slots: object) -> str:
        """Return a wording of production `kind`."""
        forms = GRAMMAR[kind].held_out if self.fresh else GRAMMAR[kind].seen
        pick = int(rng.integers(len(forms))) if len(forms) > 1 else 0
        return forms[pick].format(**slots)

    def allows(self, relation: str, thing: str) -> bool:
        """Return whether the relation of this object may be told."""
        return self.open or not reserved(relation, thing)


def draw_style(split: str, rng: np.random.Generator) -> Style:
    """Return how the next sentence of an episode of `split` may be put.

    Episodes to train on never get what is reserved. Others get a quarter of their sentences in
    held-out phrasings, and reserved combinations as they come, but never both in one sentence.
    """
    if split.split("_")[-1] not in SPLITS:
        return Style()
    fresh = bool(rng.random() < _FRESH)
    return Style(fresh=fresh, open=not fresh)


def phrasings(kind: str, held_out: bool = False) -> tuple[str, ...]:
    """Return the wordings of a production of `GRAMMAR`, with slots such as '{object}'.

    Raises:
        UserError: no such production.
    """
    if kind not in GRAMMAR:
        raise UserError(f"There is no production '{kind}' of sentences.{suggest(kind, GRAMMAR)}")
    return GRAMMAR[kind].held_out if held_out else GRAMMAR[kind].seen


@cache
def reserved(relation: str, thing: str) -> bool:
    """Return whether a relation of `RELATIONS` to this object is never trained on."""
    digest = hashlib.sha256(f"{_SALT}{relation}/{thing}".encode()).digest()
    return digest[0] % _ONE_IN == 0


def combinations(objects: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return the reserved (relation, object) among all of these objects."""
    return tuple((r, thing) for thing in objects for r in RELATIONS if reserved(r, thing))


@lru_cache(1 << 16)
def held_out(text: str, answer: str = "") -> Literal["phrasing", "combination"] | None:
    """Return why a sentence is reserved for evaluation, None where it may be trained on.

    A question is judged with its answer. Sentences that the grammar does not make are free.
    """
    if _rewords(text):
        return "phrasing"
    return "combination" if any(reserved(*claim) for claim in claims(text, answer)) else None


def claims(text: str, answer: str = "") -> Iterator[tuple[str, str]]:
    """Yield the (relation, object) pairs that a sentence tells of."""
    for part in text.split(", "):
        if part in _fixed():
            continue  # "a wall right ahead" is no object called "wall right"
        for kind, pattern in _patterns("{object}"):
            if not (match := pattern.fullmatch(part)):
                continue
            thing = match["object"]
            if kind in RELATIONS:
                yield kind, thing
            elif kind == "object":
                yield match["side"].removeprefix("on the "), thing
                if match["range"]:
                    yield match["range"].strip(), thing
            elif answer in RELATIONS:  # where, on which side, how far
                yield answer, thing
    if text in _AHEAD and answer.startswith("a ") and answer != "a wall":
        yield "ahead", answer.removeprefix("a ")


def _rewords(text: str) -> bool:
    """Whether the sentence, or a part of it between commas, is in a held-out phrasing."""
    parts = (text, *text.split(", "))
    return any(p.fullmatch(part) for part in parts for p in _held_out_patterns())


@cache
def _patterns(slot: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Return (production, pattern) of all wordings with this slot."""
    forms = ((kind, f) for kind, both in GRAMMAR.items() for f in (*both.seen, *both.held_out))
    return tuple((kind, _pattern(form)) for kind, form in forms if slot in form)


@cache
def _fixed() -> frozenset[str]:
    """Return the wordings without slots."""
    every = (form for forms in GRAMMAR.values() for form in (*forms.seen, *forms.held_out))
    return frozenset(form for form in every if "{" not in form)


@cache
def _held_out_patterns() -> tuple[re.Pattern[str], ...]:
    return tuple(_pattern(form) for forms in GRAMMAR.values() for form in forms.held_out)


def _pattern(form: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", form)
    made = (
        f"(?P<{part}>{_SLOTS[part]})" if i % 2 else re.escape(part) for i, part in enumerate(parts)
    )
    return re.compile("".join(made))
