"""How captions and answers are judged, on worlds and answerers whose results are known."""

import dataclasses

import numpy as np
import pytest

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.datasets.store import EpisodeStore, EpisodeWriter
from worldmodel.datasets.text import TextDocument, write_text
from worldmodel.envs.grammar import QUESTIONS, held_out, phrasings
from worldmodel.errors import UserError
from worldmodel.evaluate.config import EvalConfig
from worldmodel.evaluate.language import (
    f1,
    facts,
    held_out_texts,
    kind_of,
    measure_language,
    read_notes,
    unseen_prose,
)
from worldmodel.world import Annotation, Episode, WorldSpec

SPEC = WorldSpec("plain", ActionTable((ActionRow("forward", "w", "go", dx=0.5),)), 8, 8)
CONFIG = EvalConfig(texts=12, questions=500)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Frames whose grey value says how bright it is; one sentence in nine is reserved."""
    path = tmp_path_factory.mktemp("store") / "plain.zarr"
    writer, rng = EpisodeWriter(path, SPEC), np.random.default_rng(0)
    for seed in range(8):
        bright = rng.random(33) < 0.75
        frames = np.where(bright, 200, 20).astype(np.uint8)
        frames = np.broadcast_to(frames[:, None, None, None], (33, 8, 8, 3)).copy()
        notes = []
        for i in range(33):
            light = "bright" if bright[i] else "dark"
            asked = "what is the light like?" if i % 9 == 0 else "how bright is it?"
            notes.append(Annotation("question", i, i, asked, light))
            notes.append(Annotation("caption", i, i, f"a {light} room"))
        keys, actions = np.ones(32, np.uint16), np.full((32, 3), (0.5, 0, 0), np.float32)
        info = {"split": "val", "seed": seed, "world": "plain", "level_seed": seed, "policy": "x"}
        writer.write(Episode(frames, actions, keys, {}, tuple(notes), info))
    return EpisodeStore(path)


class Seer:
    """Answers and describes what the frame shows."""

    def light(self, frame):
        return "bright" if frame.mean() > 100 else "dark"

    def answers(self, frames, questions):
        assert len(frames) == len(questions)
        return [self.light(frame) for frame in frames]

    def captions(self, frames):
        return [f"the room is {self.light(frame)}" for frame in frames]

    def text_perplexity(self, texts):
        return float(np.mean([len(text) for text in texts]))


class Blind(Seer):
    """Says the same of every frame."""

    def light(self, frame):
        return "dark"


def found(dream, store, **changes):
    measured = measure_language(dream, store, dataclasses.replace(CONFIG, **changes))
    return {metric.name: metric for metric in measured}


def test_one_who_sees_is_always_right_and_beats_those_who_do_not_look(store):
    metrics = found(Seer(), store)
    for name in ("answer_accuracy", "answer_accuracy_reserved", "caption_f1"):
        metric = metrics[name]
        assert metric.value == 1
        assert 0.6 < metric.baselines["majority"] < 0.9
        assert metric.baselines["another frame"] < 0.9
    assert metrics["answer_accuracy"].n + metrics["answer_accuracy_reserved"].n == 8 * 33
    assert metrics["answer_accuracy_reserved"].n == 8 * 4
    assert metrics["perplexity"].n == 12


def test_one_who_does_not_look_gains_nothing(store):
    metric = found(Blind(), store)["answer_accuracy"]
    assert metric.value == metric.baselines["another frame"]
    assert metric.value == pytest.approx(1 - metric.baselines["majority"])
    assert metric.low < metric.value < metric.high


def test_nothing_is_asked_where_nothing_is_to_be(store):
    assert set(found(Seer(), store, questions=0)) == {"perplexity", "perplexity_reserved"}
    assert "perplexity" not in found(Seer(), store, texts=0)


def test_sentences_are_read_once_in_an_order_of_the_seed(store):
    first, again, other = (read_notes(store, "val", seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len(first) == len({(n.episode, n.said) for n in first}) == 8 * 33 * 2
    texts = held_out_texts(first, 10)
    assert [text.partition(":")[0] for text in texts] == ["caption"] * 5 + ["question"] * 5
    assert all(" answer: " in text for text in texts[5:])


def test_unseen_plain_text_has_its_own_perplexity(store, tmp_path):
    path = str(tmp_path / "books.zarr")
    documents = [TextDocument(f"chapter {i}", f"word {i} " * 50) for i in range(40)]
    write_text(path, documents, "a test", "CC0-1.0", val=0.5)
    metric = found(Seer(), store, prose=path)["perplexity_prose"]
    assert metric.n == 12
    assert metric.baselines["shuffled words"] == pytest.approx(metric.value, rel=0.1)
    with pytest.raises(UserError, match="no documents of the split 'test'"):
        unseen_prose(path, "test")


def test_facts_are_the_words_that_tell_something():
    truth = facts("a dark room, a red torch near on the left")
    assert f1(facts("Left near: red torch. There is a dark room"), truth) == 1
    assert f1(facts("a dark room"), truth) == pytest.approx(2 * 2 / (2 + 6))
    assert f1(facts("bright corridor"), truth) == 0
    assert f1(facts("dark dark dark"), truth) == pytest.approx(2 * 1 / (3 + 6))


def test_every_question_of_the_grammar_has_its_kind():
    slots = {"object": "red torch", "noun": "torch", "name": "lives"}
    for kind in QUESTIONS:
        for form in (*phrasings(kind), *phrasings(kind, held_out=True)):
            assert kind_of(form.format(**slots)) == kind
    assert kind_of("who are you?") == ""
    assert held_out("what is the light like?", "dark") == "phrasing"
