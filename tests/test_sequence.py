"""Layout, packing and the attention rule, against a rule written down a second time."""

import itertools
from dataclasses import dataclass

import pytest
import torch

from worldmodel.sequence import Batch, Document, Frame, Text, attention_mask, pack
from worldmodel.text import BOI, BOS, EOI, PAD

GRID, WINDOW, LENGTH = (1, 2), 2, 96


@dataclass
class Token:
    """One token as a person would describe it; `places` orders the stream."""

    what: str
    document: int
    place: int
    frames_before: int
    id: int = PAD
    copy: tuple[int, bool] | None = None  # (number of the frame, is target)
    frame: int = -1  # for <boi>, <eoi>, action text: the frame that it belongs to
    instruction: int = -1


def describe(document: Document, number: int) -> list[Token]:
    """The stream of a document, then the targets' copies."""
    tokens = [Token("bos", number, 0, 0, BOS)]
    later: list[Token] = []
    place, frames, instructions = 1, 0, 0
    for span in document:
        if isinstance(span, Text):
            for i in span.ids:
                token = Token(span.role, number, place, frames, i)
                token.frame = frames if span.role == "action" else -1
                token.instruction = instructions if span.role == "instruction" else -1
                tokens.append(token)
                place += 1
            instructions += span.role == "instruction"
            continue
        tokens.append(Token("boi", number, place, frames, BOI, frame=frames))
        place += 1
        for target in (False, True) if span.target else (False,):
            for _ in range(GRID[0] * GRID[1]):
                cell = Token("cell", number, place, frames, copy=(frames, target), frame=frames)
                (later if target else tokens).append(cell)
        place += 1
        tokens.append(Token("eoi", number, place, frames, EOI, frame=frames))
        place += 1
        frames += 1
    return tokens + later


def sees(query: Token, key: Token, everything: list[Token]) -> bool:
    """The rule, in words of the sequence."""
    if query is key:
        return True
    if query.document != key.document:
        return False
    if key.copy and key.copy == query.copy:
        return True  # a frame sees the whole of itself
    if key.copy and key.copy[1]:
        return False  # a target is seen by nobody else
    if key.place >= query.place:
        return False  # causal; also: a target does not see its own clean copy
    if key.frame >= 0:  # a frame and what belongs to it leave the window
        return query.frames_before - key.frame <= WINDOW
    if key.instruction >= 0:  # an instruction holds until the next one
        following = [
            t.frames_before
            for t in everything
            if t.document == key.document and t.instruction == key.instruction + 1
        ]
        return not following or query.frames_before < following[0]
    return True


ACTION = Text((70, 71), "action")
FILM: Document = [
    Text((10, 11, 12)),
    Frame(0, target=False),
    ACTION,
    Frame(1),
    Text((50, 51), "instruction"),
    Frame(2),
    Frame(3),
    ACTION,
    Frame(4),
    Text((60,), "instruction"),
    ACTION,
    Frame(5),
    Frame(6),
]
QUESTION: Document = [Frame(7, target=False), Text((20, 21, 22))]
IMAGINE: Document = [Text((30, 31)), Frame(8)]
PROSE: Document = [Text((40, 41, 42, 43))]
DOCUMENTS = [FILM, QUESTION, IMAGINE, PROSE, FILM, IMAGINE]


@pytest.fixture(scope="module")
def batch() -> Batch:
    return pack(DOCUMENTS, [5, 3, 2, 0, 5, 2], GRID, WINDOW, LENGTH)


def columns_of(batch: Batch, number: int) -> tuple[int, list[int]]:
    row, columns = (batch.doc == number).nonzero(as_tuple=True)
    assert len(set(row.tolist())) == 1, "a document lies in one row"
    first, last = int(columns.min()), int(columns.max())
    assert last - first + 1 == len(columns), "in one piece"
    return int(row[0]), columns.tolist()


def test_the_mask_is_the_rule(batch):
    described: dict[tuple[int, int], Token] = {}
    for number, document in enumerate(DOCUMENTS):
        tokens = describe(document, number)
        row, columns = columns_of(batch, number)
        assert len(tokens) == len(columns)
        for column, token in zip(columns, tokens, strict=True):
            described[row, column] = token
            assert batch.ids[row, column] == token.id
            assert batch.vision[row, column] == (token.copy is not None)
    everything = list(described.values())
    mask = attention_mask(batch)
    for row in range(len(mask)):
        for q in range(LENGTH):
            query = described.get((row, q))
            for k in range(LENGTH):
                key = described.get((row, k))
                # Padding sees itself alone, and nobody sees padding.
                padding = query is None or key is None
                expected = q == k if padding else sees(query, key, everything)
                assert mask[row, q, k] == expected, (row, query, key)


def test_several_documents_share_a_row_and_do_not_meet(batch):
    assert len(batch.ids) < len(DOCUMENTS)
    mask = attention_mask(batch)
    assert not mask[batch.doc.unsqueeze(2) != batch.doc.unsqueeze(1)].any()


def test_no_row_of_the_mask_is_empty(batch):
    assert (batch.doc < 0).any(), "the test needs padding"
    assert attention_mask(batch).any(dim=-1).all()


def test_what_comes_next(batch):
    """Text and frames are predicted by what stands before them; cells and targets say nothing."""
    row, columns = columns_of(batch, 0)
    stream = [t for t in describe(FILM, 0) if not (t.copy and t.copy[1])]
    expected = []
    for token, after in itertools.pairwise(stream):
        skip = token.copy is not None or token.what == "boi"
        expected.append(-1 if skip or after.copy is not None else after.id)
    got = batch.next_id[row, columns].tolist()
    assert got[: len(expected)] == expected[: len(got)]
    assert set(got[len(expected) :]) == {-1}


def test_positions_tell_time_and_place(batch):
    row, columns = columns_of(batch, 0)
    tokens = describe(FILM, 0)
    position = batch.position[row, columns]
    assert [t.place for t in tokens] == position[:, 0].tolist()
    cells = [i for i, t in enumerate(tokens) if t.copy]
    assert position[cells, 2:4].tolist() == [[0, 0], [0, 1]] * (len(cells) // 2)
    assert position[:, 1].tolist() == batch.step[row, columns].tolist()


def test_copies_point_at_their_frames(batch):
    flat = batch.visual
    assert sorted(flat.tolist()) == batch.vision.flatten().nonzero().squeeze(1).tolist()
    cells = GRID[0] * GRID[1]
    assert len(flat) == cells * len(batch.source)
    assert (batch.target.flatten()[flat].view(-1, cells) == batch.is_target[:, None]).all()
    copies = batch.copy.flatten()[flat].view(-1, cells)
    assert (copies == torch.arange(len(batch.source))[:, None]).all()
    kinds = torch.tensor([5, 3, 2, 0, 5, 2])
    documents = batch.doc.flatten()[batch.first_places()]
    assert torch.equal(batch.kind, kinds[documents])
    assert torch.equal(batch.row_of_copies(LENGTH), batch.first_places() // LENGTH)
    of_text = batch.doc >= 0
    assert torch.equal(batch.text_kind[of_text], kinds[batch.doc[of_text]])


def test_every_target_has_its_context(batch):
    """FILM and IMAGINE stand twice in the batch, so that equal frames could be mistaken."""
    contexts = batch.context_of_targets()
    targets = batch.is_target.nonzero().squeeze(1)
    assert len(contexts) == len(targets) > 0
    assert not batch.is_target[contexts].any()
    assert torch.equal(batch.source[contexts], batch.source[targets])
    place = batch.first_places()
    for name in ("doc", "order", "step"):
        column = getattr(batch, name).flatten()
        assert torch.equal(column[place[contexts]], column[place[targets]])


def test_the_last_frame_is_the_context_one_step_earlier(batch):
    shown = torch.arange(len(batch.source)).view(-1, 1, 1) + torch.ones(1, 2, 3)
    last = batch.last_frames(shown)
    place = batch.first_places()
    doc, step = batch.doc.flatten()[place], batch.step.flatten()[place]
    for i in range(len(place)):
        found = (doc == doc[i]) & (step == step[i] - 1) & ~batch.is_target
        assert found.sum() == (step[i] > 0)
        expected = shown[found].squeeze(0) if step[i] else torch.zeros(2, 3)
        assert torch.equal(last[i], expected)


@pytest.mark.parametrize("chosen", [[0], [1], [1, 0]])
def test_some_rows_alone_are_what_they_were(batch, chosen):
    rows = torch.tensor(chosen)
    inside = torch.isin(batch.row_of_copies(LENGTH), rows)
    part = batch.take_rows(rows, inside, LENGTH)
    assert torch.equal(attention_mask(part), attention_mask(batch)[rows])
    assert torch.equal(part.ids, batch.ids[rows])
    assert part.vision.flatten()[part.visual].all()
    assert part.vision.sum() == len(part.visual)
    places, old = part.first_places(), batch.first_places()[inside]
    assert torch.equal(places % LENGTH, old % LENGTH)
    assert torch.equal(rows[places // LENGTH], old // LENGTH)
    assert torch.equal(part.source, batch.source[inside])
    contexts = part.context_of_targets()
    assert torch.equal(part.source[contexts], part.source[part.is_target])
    shown = torch.randn(len(batch.source), 2, 3)
    assert torch.equal(part.last_frames(shown[inside]), batch.last_frames(shown)[inside])


def test_a_document_that_fills_the_row_fits_and_a_longer_one_does_not():
    size = len(describe(FILM, 0))
    batch = pack([FILM], [0], GRID, WINDOW, size)
    assert (batch.doc == 0).all()
    with pytest.raises(ValueError, match=f"has {size} tokens, a row holds {size - 1}"):
        pack([FILM], [0], GRID, WINDOW, size - 1)


def test_text_alone_makes_a_batch_without_frames():
    batch = pack([PROSE], [0], GRID, WINDOW, 8)
    assert len(batch.visual) == len(batch.source) == len(batch.is_target) == 0
    causal = attention_mask(batch)[0, :5, :5]
    assert torch.equal(causal, torch.ones(5, 5, dtype=torch.bool).tril())
