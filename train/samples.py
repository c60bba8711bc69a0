"""Sample kinds: how recordings become documents of the one stream.

text         T                    plain English
caption      I T                  a frame, then what is in it
imagine      T I                  a caption, then a frame to imagine
question     I Q A                a question about a frame, then its answer
video        I I I ...            frames alone
action       I A I A I ...        frames and the actions between them
instructed   I A I T I I I ...    an instruction, then frames that fulfil it, no actions
commanded    I A I T I A I A ...  the same with actions
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any

import numpy as np

from worldmodel.actions import FORMS, ActionTable
from worldmodel.envs.grammar import held_out
from worldmodel.errors import UserError, suggest
from worldmodel.sequence import Document, Frame, Text
from worldmodel.text import EOS, TextTokenizer
from worldmodel.train.data import Recordings

KINDS = ("text", "caption", "imagine", "question", "video", "action", "instructed", "commanded")


@dataclass(frozen=True)
class Mixture:
    """Share of each sample kind, by documents; need not sum to 1.

    Attributes:
        clip: frames of a video document.
        stride: steps between the frames of a document of the kind 'video'; what has words about
            steps or moments always shows every frame.
        forms: shares of the surface forms of actions: metric, keys, phrase.
        mixed_forms: share of clips whose steps each draw a form of their own.
        drop_action: share of steps whose action text is left out, for guidance.
        drop_caption: share of the captions that are left out before a frame, for guidance
            (10 % in arXiv 2603.03276).
        schedule: pairs of a training step and the shares from there on, as {kind: share}; kinds
            left out keep the share above. Between two steps the shares go over evenly.
    """

    text: float = 0.02
    caption: float = 0.14
    imagine: float = 0.05
    question: float = 0.25
    video: float = 0.03
    action: float = 0.3
    instructed: float = 0.15
    commanded: float = 0.06
    clip: int = 12
    stride: int = 1
    forms: tuple[float, float, float] = (0.1, 0.75, 0.15)
    mixed_forms: float = 0.2
    drop_action: float = 0.08
    drop_caption: float = 0.1
    schedule: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.clip < 1 or self.stride < 1:
            raise UserError(
                f"mixture.clip={self.clip} and mixture.stride={self.stride} must be at least 1."
            )
        _check_shares({kind: getattr(self, kind) for kind in KINDS}, "mixture")
        before = -1
        for point in self.schedule:
            try:
                step, changes = point
                in_order = before < step
            except (TypeError, ValueError):
                in_order, step, changes = False, 0, None
            if not in_order or not isinstance(changes, Mapping):
                raise UserError(
                    "mixture.schedule must be pairs of a step and shares, with growing steps, like "
                    f"[[0,{{action: 1}}],[2000,{{action: 0.5}}]]; {point!r} does not fit."
                )
            _check_shares(changes, f"mixture.schedule at step {step}")
            before = step

    @property
    def shares(self) -> np.ndarray:
        """Shares of `KINDS` without the schedule, summing to 1."""
        shares = np.array([getattr(self, kind) for kind in KINDS], np.float64)
        return shares / max(shares.sum(), 1e-9)

    def shares_at(self, step: int) -> np.ndarray:
        """Shares of `KINDS` at a training step, summing to 1."""
        if not self.schedule:
            return self.shares
        steps = [point[0] for point in self.schedule]
        shares = np.array(
            [
                np.interp(step, steps, [p[1].get(kind, getattr(self, kind)) for p in self.schedule])
                for kind in KINDS
            ]
        )
        return shares / max(shares.sum(), 1e-9)


def _check_shares(shares: Mapping[str, Any], where: str) -> None:
    for kind, share in shares.items():
        if kind not in KINDS:
            raise UserError(f"{where}: unknown sample kind '{kind}'.{suggest(str(kind), KINDS)}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not share >= 0:
            raise UserError(f"{where}: the share of '{kind}' is {share!r}, but must be 0 or more.")


@dataclass
class Sampler:
    """Draws documents from recordings; every draw is a function of the given generator only.

    Sentences that the grammar reserves for evaluation are never drawn, whoever wrote the store.
    `prose` are pieces of plain English, as text or already as token ids.
    """

    recordings: Recordings
    tokenizer: TextTokenizer
    mixture: Mixture
    prose: Sequence[str | np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._notes: dict[str, list[tuple[int, int]]] = {}
        for e, notes in enumerate(self.recordings.annotations):
            for n, note in enumerate(notes):
                if held_out(note.text, note.answer):
                    continue
                self._notes.setdefault(note.kind, []).append((e, n))
        self._ids: dict[str, tuple[int, ...]] = {}
        self._said: dict[tuple[Any, ...], tuple[int, ...]] = {}
        self._forms = bounds(np.array(self.mixture.forms) / sum(self.mixture.forms))
        usable = np.ones(len(KINDS))
        needs = {"caption": "caption", "imagine": "caption", "question": "question"}
        needs |= {"instructed": "instruction", "commanded": "instruction"}
        for i, kind in enumerate(KINDS):
            if kind in needs and needs[kind] not in self._notes:
                usable[i] = 0
            if kind == "text" and not self.prose:
                usable[i] = 0
        self._usable = usable
        steps = [point[0] for point in self.mixture.schedule] or [0]
        if not all((self.mixture.shares_at(step) * usable).sum() > 0 for step in steps):
            raise UserError(
                "The mixture has only sample kinds that need annotations, and these recordings "
                "have none for them. Raise mixture.video or mixture.action above 0."
            )
        self._kinds = self._kinds_at(0)

    def __getstate__(self) -> dict[str, Any]:
        """Go to other processes without the frames: drawing looks at none."""
        return self.__dict__ | {"recordings": self.recordings.without_frames()}

    def _kinds_at(self, step: int) -> list[float]:
        shares = self.mixture.shares_at(step) * self._usable
        return bounds(shares / shares.sum())

    def draw(self, rng: np.random.Generator, step: int = 0) -> tuple[int, Document]:
        """Return (index in KINDS, document); `Frame.latent` is a frame of the recordings.

        A function of the generator and, where the mixture has a schedule, of the training step.
        """
        kind = pick(self._kinds_at(step) if self.mixture.schedule else self._kinds, rng)
        name = KINDS[kind]
        if name == "text":
            return kind, self._prose(rng)
        if name in ("caption", "imagine", "question"):
            return kind, self._pair(name, rng)
        if name in ("instructed", "commanded"):
            return kind, self._instructed(name == "commanded", rng)
        return kind, self._video(name == "action", rng)

    def encode(self, text: str) -> tuple[int, ...]:
        """Return token ids of `text`, remembered."""
        if text not in self._ids:
            self._ids[text] = tuple(self.tokenizer.encode(text))
        return self._ids[text]

    def _prose(self, rng: np.random.Generator) -> Document:
        piece = self.prose[int(rng.integers(len(self.prose)))]
        ids = self.encode(piece) if isinstance(piece, str) else piece[:120].tolist()
        return [Text((*ids[:120], EOS))]

    def _pair(self, name: str, rng: np.random.Generator) -> Document:
        notes = self._notes["question" if name == "question" else "caption"]
        e, n = notes[rng.integers(len(notes))]
        note = self.recordings.annotations[e][n]
        frame = int(self.recordings.starts[e]) + note.start
        if name == "question":
            asked = f"question: {note.text} answer: {note.answer}"
            return [Frame(frame, target=False), Text((*self.encode(asked), EOS))]
        text = self.encode(f"caption: {note.text}")
        if name == "caption":
            return [Frame(frame, target=False), Text((*text, EOS))]
        if rng.random() < self.mixture.drop_caption:
            return [Frame(frame)]
        return [Text(text), Frame(frame)]

    def _video(self, actions: bool, rng: np.random.Generator) -> Document:
        starts, clip = self.recordings.starts, self.mixture.clip
        stride = 1 if actions else self.mixture.stride
        length = (clip - 1) * stride + 1
        e = int(rng.integers(self.recordings.num_episodes))
        last = int(starts[e + 1]) - length
        first = int(rng.integers(starts[e], max(int(starts[e]), last) + 1))
        frames = range(first, min(first + length, int(starts[e + 1])), stride)
        spoken = self._spoken_actions(frames, rng) if actions else {}
        return self._clip(frames, spoken, {})

    def _instructed(self, actions: bool, rng: np.random.Generator) -> Document:
        notes, clip = self._notes["instruction"], self.mixture.clip
        e, n = notes[rng.integers(len(notes))]
        note = self.recordings.annotations[e][n]
        begin = int(self.recordings.starts[e])
        context = int(rng.integers(1, 5))
        # Any stretch of the fulfilment still fulfils; prefer its end, where the goal is met.
        slack = max(0, note.stop - note.start - (clip - context))
        at = note.start + int(rng.integers(slack + 1))
        first = max(begin, begin + at - context + 1)
        frames = range(first, min(begin + note.stop, first + clip - 1) + 1)
        spoken = self._spoken_actions(frames, rng)
        told = begin + at + 1  # the first frame that the instruction is about
        if not actions:
            spoken = {frame: text for frame, text in spoken.items() if frame < told}
        return self._clip(frames, spoken, {told: self.encode(f"instruction: {note.text}")})

    def _clip(
        self,
        frames: range,
        spoken: dict[int, tuple[int, ...]],
        told: dict[int, tuple[int, ...]],
    ) -> Document:
        document: list[Text | Frame] = []
        for frame in frames:
            if frame in told:
                document.append(Text(told[frame], "instruction"))
            if frame in spoken:
                document.append(Text(spoken[frame], "action"))
            document.append(Frame(frame, target=frame != frames[0]))
        return document

    def _spoken_actions(self, frames: range, rng: np.random.Generator) -> dict[int, tuple]:
        """Action text before each frame but the first, by frame."""
        data, mixture = self.recordings, self.mixture
        table: ActionTable = data.spec.actions
        form = pick(self._forms, rng)
        mixed = rng.random() < mixture.mixed_forms
        spoken = {}
        steps = slice(frames[0], frames[-1])
        keys, moves = data.keys[steps].tolist(), data.actions[steps].tolist()
        for frame, held, moved in zip(frames[1:], keys, moves, strict=True):
            if mixed:
                form = pick(self._forms, rng)
            unknown = not held and isnan(sum(moved))
            if rng.random() < mixture.drop_action or unknown:
                continue
            # The same few are said again and again.
            said = (held or tuple(moved), form, int(rng.integers(8)))
            if said not in self._said:
                action = data.action(frame - 1)
                assert action is not None
                self._said[said] = self.encode(table.text(action, FORMS[form], said[-1]))
            spoken[frame] = self._said[said]
        return spoken


def bounds(shares: np.ndarray) -> list[float]:
    """Return where each share ends, of shares that sum to 1; for `pick`."""
    ends = shares.cumsum()
    return (ends / ends[-1]).tolist()


def pick(ends: list[float], rng: np.random.Generator) -> int:
    """Return a number drawn by the shares that end there: what `rng.choice` gives, but faster."""
    return bisect_right(ends, rng.random())


def python_prose(chunk: int = 400) -> list[str]:
    """Return plain English that every machine has: the topics of CPython's own help.

    Cut at line ends into pieces of about `chunk` characters (PSF licence).
    """
    from pydoc_data.topics import topics

    pieces = []
    for text in topics.values():
        piece = ""
        for line in text.splitlines():
            piece = f"{piece} {line.strip()}".strip()
            if len(piece) >= chunk:
                pieces.append(piece)
                piece = ""
    return pieces
