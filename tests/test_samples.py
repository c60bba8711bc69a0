"""Documents drawn from recordings: what they must contain, and what they must not."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.errors import UserError
from worldmodel.sequence import Document, Frame, Text, lay_out, pack
from worldmodel.text import EOS, TextTokenizer, train_tokenizer
from worldmodel.train.data import Recordings
from worldmodel.train.packing import count_tokens, trim
from worldmodel.train.samples import KINDS, Mixture, Sampler, python_prose
from worldmodel.world import Annotation, WorldSpec

TABLE = ActionTable(
    (
        ActionRow("forward", "w", "go", dx=0.5, phrases=("go forward", "walk")),
        ActionRow("left", "a", "turn", dyaw=11.25, phrases=("turn left",)),
        ActionRow("right", "d", "turn", dyaw=-11.25, phrases=("turn right",)),
    )
)
STEPS = (40, 3, 25)
GRID, WINDOW = (2, 2), 3
NOTHING = {kind: 0.0 for kind in KINDS}


def make_recordings() -> Recordings:
    rng = np.random.default_rng(0)
    starts = np.concatenate([[0], np.cumsum([n + 1 for n in STEPS])])
    notes = (
        (
            Annotation("caption", 5, 5, "a red pillar"),
            Annotation("question", 7, 7, "what is ahead", "a wall"),
            Annotation("instruction", 3, 9, "go to the red pillar"),
            Annotation("instruction", 0, 39, "walk around"),
        ),
        (Annotation("caption", 0, 0, "a dark room"),),
        (Annotation("instruction", 23, 25, "turn left"),),
    )
    frames = rng.integers(0, 256, (starts[-1], 8, 8, 3), dtype=np.uint8)
    keys = rng.integers(0, 8, starts[-1]).astype(np.uint16)
    actions = np.zeros((starts[-1], 3), np.float32)
    return Recordings(WorldSpec("toy", TABLE, 8, 8), frames, keys, actions, starts, notes)


RECORDINGS = make_recordings()


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    lines = [TABLE.text(TABLE.from_mask(m), form) for m in range(8) for form in ("keys", "phrase")]
    return train_tokenizer(lines * 9, 350)


def make(tokenizer: TextTokenizer, **mixture) -> Sampler:
    return Sampler(RECORDINGS, tokenizer, Mixture(**mixture), ["plain english", "and more"])


def only(tokenizer: TextTokenizer, kind: str, **more) -> Sampler:
    return make(tokenizer, **(NOTHING | {kind: 1.0} | more))


def draws(sampler: Sampler, count: int = 200, seed: int = 0) -> list[Document]:
    rng = np.random.default_rng(seed)
    return [sampler.draw(rng)[1] for _ in range(count)]


def frames_of(document: Document) -> list[int]:
    return [span.latent for span in document if isinstance(span, Frame)]


def episode_of(frame: int) -> int:
    return int(np.searchsorted(RECORDINGS.starts, frame, side="right")) - 1


def test_every_kind_appears_about_as_often_as_it_should(tokenizer):
    sampler = make(tokenizer)
    rng = np.random.default_rng(0)
    seen = Counter(sampler.draw(rng)[0] for _ in range(3000))
    for kind, share in enumerate(Mixture().shares):
        assert seen[kind] / 3000 == pytest.approx(share, abs=0.03)
        assert seen[kind] > 0


def test_a_draw_is_a_function_of_the_generator(tokenizer):
    first, second = make(tokenizer), make(tokenizer)
    assert draws(first, seed=3) == draws(second, seed=3)
    draws(first, 50)  # what was drawn before does not count
    assert draws(first, seed=3) == draws(second, seed=3)
    assert draws(first, seed=4) != draws(second, seed=3)


@pytest.mark.parametrize("kind", ["video", "action", "instructed", "commanded"])
def test_clips_are_consecutive_frames_of_one_episode(tokenizer, kind):
    lengths = set()
    for document in draws(only(tokenizer, kind)):
        frames = frames_of(document)
        assert frames == list(range(frames[0], frames[0] + len(frames)))
        assert episode_of(frames[0]) == episode_of(frames[-1])
        assert 1 < len(frames) <= Mixture().clip
        spans = [span for span in document if isinstance(span, Frame)]
        assert [span.target for span in spans] == [False] + [True] * (len(spans) - 1)
        lengths.add(len(frames))
    assert max(lengths) == Mixture().clip


def test_all_frames_can_be_drawn(tokenizer):
    seen = {
        frame for document in draws(only(tokenizer, "video"), 600) for frame in frames_of(document)
    }
    assert seen == set(range(len(RECORDINGS.frames)))


def test_video_has_no_words(tokenizer):
    for document in draws(only(tokenizer, "video")):
        assert all(isinstance(span, Frame) for span in document)


@pytest.mark.parametrize("mixed", [0.0, 1.0])
def test_action_text_is_that_of_the_step_to_the_next_frame(tokenizer, mixed):
    spoken = total = 0
    forms = set()
    for document in draws(only(tokenizer, "action", mixed_forms=mixed)):
        total += len(frames_of(document)) - 1
        within = set()
        for words, frame in itertools.pairwise(document):
            if isinstance(words, Text):
                assert words.role == "action"
                assert isinstance(frame, Frame), "an action leads to a frame"
                assert frame.target
                text = tokenizer.decode(words.ids)
                assert TABLE.parse(text) == TABLE.from_mask(int(RECORDINGS.keys[frame.latent - 1]))
                spoken += 1
                within.add(form_of(text))
        assert mixed or len(within - {"none"}) <= 1
        forms |= within
    assert forms >= {"metric", "keys", "phrase"}
    assert 1 - spoken / total == pytest.approx(Mixture().drop_action, abs=0.04)


def form_of(text: str) -> str:
    body = text.removeprefix("action: ")
    if body.startswith("dx="):
        return "metric"
    if body in ("none", "wait", "stop", "stand still", "do nothing"):
        return "none"
    return "keys" if set(body) <= set("wad+") else "phrase"


def instruction_at(document: Document) -> int:
    (at,) = (i for i, s in enumerate(document) if isinstance(s, Text) and s.role == "instruction")
    return at


@pytest.mark.parametrize("kind", ["instructed", "commanded"])
def test_instructions_stand_before_frames_that_fulfil_them(tokenizer, kind):
    notes = {
        f"instruction: {note.text}": range(start + note.start, start + note.stop + 1)
        for start, of_one in zip(RECORDINGS.starts, RECORDINGS.annotations, strict=False)
        for note in of_one
        if note.kind == "instruction"
    }
    seen = set()
    for document in draws(only(tokenizer, kind)):
        at = instruction_at(document)
        text = tokenizer.decode(document[at].ids)
        seen.add(text)
        after = frames_of(document[at:])
        assert frames_of(document[:at]), "there is a frame to begin from"
        assert after
        assert set(after) <= set(notes[text][1:]), "the steps begin after the note's first frame"
    assert seen == set(notes)


def test_instructed_documents_say_no_actions_after_the_instruction(tokenizer):
    before = after = commanded = 0
    for document in draws(only(tokenizer, "instructed")):
        at = instruction_at(document)
        before += sum(isinstance(s, Text) for s in document[:at])
        after += sum(isinstance(s, Text) for s in document[at + 1 :])
    for document in draws(only(tokenizer, "commanded")):
        commanded += sum(isinstance(s, Text) for s in document[instruction_at(document) + 1 :])
    assert after == 0
    assert before > 50
    assert commanded > 200


def test_a_share_of_the_captions_is_left_out_before_frames(tokenizer):
    drawn = [len(d) for d in draws(only(tokenizer, "imagine", drop_caption=0.3), 400)]
    assert set(drawn) == {1, 2}
    assert 0.2 < drawn.count(1) / len(drawn) < 0.4


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("text", "T"), ("caption", "IT"), ("imagine", "TI"), ("question", "IT")],
)
def test_shape_of_documents_about_one_frame(tokenizer, kind, shape):
    for document in draws(only(tokenizer, kind, drop_caption=0.0), 30):
        assert "".join("T" if isinstance(s, Text) else "I" for s in document) == shape
        (words,) = (s for s in document if isinstance(s, Text))
        text = tokenizer.decode(words.ids)
        if kind == "imagine":
            assert document[1].target
        else:
            assert words.ids[-1] == EOS
        if kind == "question":
            assert text == "question: what is ahead answer: a wall"
            assert frames_of(document) == [7]
        if kind in ("caption", "imagine"):
            assert (text, frames_of(document)) in [
                ("caption: a red pillar", [5]),
                ("caption: a dark room", [STEPS[0] + 1]),
            ]


def test_kinds_that_the_recordings_cannot_give_are_left_out(tokenizer):
    bare = dataclasses.replace(RECORDINGS, annotations=((), (), ()))
    sampler = Sampler(bare, tokenizer, Mixture(), [])
    rng = np.random.default_rng(0)
    assert {KINDS[sampler.draw(rng)[0]] for _ in range(200)} == {"video", "action"}
    with pytest.raises(UserError, match="mixture"):
        Sampler(bare, tokenizer, Mixture(**(NOTHING | {"caption": 1.0})), [])


@pytest.mark.parametrize("length", [40, 64, 100])
def test_a_trimmed_document_fits_and_ends_with_a_frame_or_plain_text(tokenizer, length):
    cells = GRID[0] * GRID[1]
    cut = 0
    for document in draws(make(tokenizer), 300):
        kept = trim(document, lambda d: count_tokens(d, cells), length)
        assert list(document[: len(kept)]) == list(kept)
        assert count_tokens(kept, cells) == lay_out(kept, cells, WINDOW).size <= length
        pack([kept], [0], GRID, WINDOW, length)
        if len(kept) < len(document):
            cut += 1
            assert not isinstance(kept[-1], Text) or kept[-1].role == "text" or len(kept) == 1
    assert cut > 0


def test_the_plain_english_is_plenty_and_the_same_every_time():
    prose = python_prose()
    assert prose == python_prose()
    assert len(prose) > 300
    assert all(400 <= len(piece) < 1000 and "\n" not in piece for piece in prose)


def test_steps_without_keys_are_spoken_in_metres_and_unknown_ones_not_at_all(tokenizer):
    moved = np.tile(np.float32([0.25, 0.0, -15.0]), (len(RECORDINGS.frames), 1))
    metric = "action: dx=+0.25 dy=+0.00 dyaw=-15.0"
    for actions, texts in ((moved, {metric}), (moved * np.nan, set())):
        data = dataclasses.replace(RECORDINGS, keys=np.zeros_like(RECORDINGS.keys), actions=actions)
        mixture = Mixture(**(NOTHING | {"action": 1.0, "drop_action": 0.0}))
        spans = [s for d in draws(Sampler(data, tokenizer, mixture), 40) for s in d]
        said = {tokenizer.decode(s.ids) for s in spans if isinstance(s, Text)}
        assert said == texts
