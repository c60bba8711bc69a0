"""Language: how well a model reads held-out sentences, and speaks about held-out frames."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from worldmodel.datasets.store import EpisodeStore
from worldmodel.datasets.text import TextStore
from worldmodel.envs.grammar import QUESTIONS, held_out, phrasings
from worldmodel.errors import UserError
from worldmodel.evaluate import metrics
from worldmodel.evaluate.config import EvalConfig
from worldmodel.evaluate.rollouts import Speaker
from worldmodel.evaluate.scorecard import Metric, metric
from worldmodel.world import Annotation

EPISODES = 32  # that sentences are taken from
_BATCH = 64  # frames that are spoken about at once
_NO_FACTS = {"a", "an", "the", "is", "are", "there", "on", "of", "some", "in"}


@dataclass(frozen=True)
class Note:
    """A sentence of a stored episode."""

    episode: str
    said: Annotation

    @property
    def reserved(self) -> bool:
        """Whether training never sees it (`worldmodel.envs.grammar`)."""
        return held_out(self.said.text, self.said.answer) is not None


def measure_language(dream: Speaker, store: EpisodeStore, config: EvalConfig) -> list[Metric]:
    """Return perplexities, and how well captions and answers fit the frames they are about.

    Sentences that are never trained on, wordings or combinations, are measured by themselves.
    """
    notes, seed, found = read_notes(store, config.split, config.seed), config.seed, []
    for reserved, name in ((False, ""), (True, "_reserved")):
        some = [note for note in notes if note.reserved == reserved]
        if texts := held_out_texts(some, config.texts):
            found.append(perplexity(f"perplexity{name}", dream, texts, seed))
        asked, told = (
            [note for note in some if note.said.kind == kind][: config.questions]
            for kind in ("question", "caption")
        )
        if asked:
            found.append(answer_accuracy(f"answer_accuracy{name}", dream, store, asked, seed))
        if told:
            found.append(caption_accuracy(f"caption_f1{name}", dream, store, told, seed))
    if config.prose and config.texts:
        pieces = unseen_prose(config.prose, config.split)
        order = np.random.default_rng(seed).permutation(len(pieces))[: config.texts]
        texts = [pieces[i] for i in order]
        found.append(perplexity("perplexity_prose", dream, texts, seed))
    return found


def read_notes(store: EpisodeStore, split: str, seed: int) -> list[Note]:
    """Return the sentences of up to `EPISODES` episodes of a split, in random order."""
    rng, ids = np.random.default_rng(seed), store.select(split)
    chosen = [ids[i] for i in rng.permutation(len(ids))[:EPISODES]]
    notes = [Note(name, said) for name in chosen for said in store.annotations(name)]
    return [notes[i] for i in rng.permutation(len(notes))]


def held_out_texts(notes: Sequence[Note], count: int) -> list[str]:
    """Return up to `count` sentences, as many of each kind as can be.

    They are written as the model meets them in training: the kind, a colon, the sentence.
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for note in notes:
        answer = f" answer: {note.said.answer}" if note.said.answer else ""
        kinds[note.said.kind].append(f"{note.said.kind}: {note.said.text}{answer}")
    share = -(-count // max(1, len(kinds)))
    return [text for kind in sorted(kinds) for text in kinds[kind][:share]][:count]


def unseen_prose(path: str, split: str) -> list[str]:
    """Return pieces of plain text of a text store's split.

    Raises:
        UserError: no text store there, or nothing in the split.
    """
    if pieces := TextStore(path).pieces(split):
        return pieces
    raise UserError(
        f"The text store '{path}' has no documents of the split '{split}', which prose= is "
        "measured on. Make it with a share for it, for instance val=0.1, or choose another split."
    )


def perplexity(name: str, dream: Speaker, texts: Sequence[str], seed: int) -> Metric:
    """Return the perplexity per token of texts; beside it, of the same with shuffled words.

    The interval is a bootstrap over 16 groups of texts.
    """
    rng = np.random.default_rng(seed)
    mixed = [" ".join(rng.permutation(text.split())) for text in texts]
    groups = [list(texts[i::16]) for i in range(min(16, len(texts)))]
    logs = np.asarray([np.log(dream.text_perplexity(group)) for group in groups])
    low, high = np.exp(np.quantile(metrics.resampled_means(logs, seed), [0.025, 0.975]))
    value = dream.text_perplexity(list(texts))
    beside = {"shuffled words": dream.text_perplexity(mixed)}
    return Metric(name, value, float(low), float(high), len(texts), "", "lower", None, beside)


def answer_accuracy(
    name: str, dream: Speaker, store: EpisodeStore, asked: Sequence[Note], seed: int
) -> Metric:
    """Return the share of questions that are answered word for word.

    Beside it what two who do not look would reach: always the most frequent right answer to that
    kind of question (among these very questions), and the model's answer about another frame.
    """
    frames = frames_of(store, asked)
    questions, truth = [n.said.text for n in asked], [n.said.answer for n in asked]
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in zip(questions, truth, strict=True):
        kinds[kind_of(question)][answer] += 1
    majority = [kinds[kind_of(question)].most_common(1)[0][0] for question in questions]

    def right(answers: Sequence[str]) -> np.ndarray:
        return np.asarray([a == b for a, b in zip(answers, truth, strict=True)], float)

    beside = {
        "majority": float(right(majority).mean()),
        "another frame": float(right(_answers(dream, _others(frames), questions)).mean()),
    }
    found = metrics.estimate(right(_answers(dream, frames, questions)), seed)
    return metric(name, found, better="higher", baselines=beside)


def caption_accuracy(
    name: str, dream: Speaker, store: EpisodeStore, told: Sequence[Note], seed: int
) -> Metric:
    """Return how far captions tell the facts of the stored ones: the mean F1 of their words.

    Words that tell nothing (a, on, there, ...) do not count. Beside it what two who do not look
    would reach: always the caption that fits these best, and the model's for another frame.
    """
    frames = frames_of(store, told)
    truth = [facts(n.said.text) for n in told]

    def score(captions: Sequence[str]) -> np.ndarray:
        return np.asarray([f1(facts(a), b) for a, b in zip(captions, truth, strict=True)])

    frequent = [text for text, _ in Counter(n.said.text for n in told).most_common(20)]
    beside = {
        "majority": max(float(score([text] * len(truth)).mean()) for text in frequent),
        "another frame": float(score(_captions(dream, _others(frames))).mean()),
    }
    found = metrics.estimate(score(_captions(dream, frames)), seed)
    return metric(name, found, better="higher", baselines=beside)


def frames_of(store: EpisodeStore, notes: Sequence[Note]) -> np.ndarray:
    """Return the frames that sentences are about, uint8 [n, H, W, 3]."""
    places = [(note.episode, note.said.start) for note in notes]
    return np.concatenate([store.frames(name, at, at + 1) for name, at in places])


def facts(caption: str) -> Counter[str]:
    """Return the words of a caption that tell something, with how often they occur."""
    return Counter(w for w in re.findall(r"[a-z0-9]+", caption.lower()) if w not in _NO_FACTS)


def f1(found: Counter[str], truth: Counter[str]) -> float:
    """Return the F1 of some words against the true ones, 0 to 1."""
    total = found.total() + truth.total()
    return 2 * (found & truth).total() / total if total else 1.0


def kind_of(question: str) -> str:
    """Return the grammar's production of a question; '' where the grammar does not make it."""
    return next((kind for kind, form in _question_forms() if form.fullmatch(question)), "")


@cache
def _question_forms() -> tuple[tuple[str, re.Pattern[str]], ...]:
    forms = [(k, f) for k in QUESTIONS for f in (*phrasings(k), *phrasings(k, held_out=True))]
    forms.sort(key=lambda pair: "{" in pair[1])  # 'is it dark?' before 'is {object} ...?'
    wild = [(kind, re.split(r"\{\w+\}", form)) for kind, form in forms]
    return tuple((kind, re.compile(".+".join(map(re.escape, parts)))) for kind, parts in wild)


def _others(frames: np.ndarray) -> np.ndarray:
    return np.roll(frames, 1, axis=0)


def _answers(dream: Speaker, frames: np.ndarray, questions: Sequence[str]) -> list[str]:
    parts = [slice(i, i + _BATCH) for i in range(0, len(frames), _BATCH)]
    return [a for part in parts for a in dream.answers(frames[part], questions[part])]


def _captions(dream: Speaker, frames: np.ndarray) -> list[str]:
    parts = [slice(i, i + _BATCH) for i in range(0, len(frames), _BATCH)]
    return [a for part in parts for a in dream.captions(frames[part])]
