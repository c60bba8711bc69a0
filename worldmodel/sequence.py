"""The one token stream: spans of text and frames, laid out in rows, and who sees whom.

A document is a list of spans. A frame stands between `<boi>` and `<eoi>`. For training, a frame
can also have a *target*: a noised copy at the same place in the stream, which sees what the
frame sees (everything earlier, and itself) and is seen by nobody else. So every frame is
learned under the very conditions of a rollout: clean past, noisy present. Laid out `in_place`,
there are no copies, as in the paper: a frame is its own target, and what is later sees it noised.

Shapes: R rows, L tokens a row, F frame copies (contexts and targets), N tokens a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from worldmodel.devices import moved
from worldmodel.text import BOI, BOS, EOI, PAD

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

FOREVER = 1 << 30


@dataclass(frozen=True)
class Text:
    """A span of text tokens.

    Attributes:
        ids: token ids.
        role: 'text', 'action' or 'instruction'. Action text is forgotten with the frame that it
            led to; an instruction is kept until the next one; text is kept.
    """

    ids: tuple[int, ...]
    role: str = "text"


@dataclass(frozen=True)
class Frame:
    """A span of one frame: row `latent` of the batch's latents; `target` asks for a copy."""

    latent: int
    target: bool = True


Document = Sequence[Text | Frame]


@dataclass(frozen=True)
class Batch:
    """Rows of documents as tensors; all that the core needs besides the latents.

    Attributes:
        ids: int64 [R, L] text token ids; PAD at frame tokens.
        vision: bool [R, L], True at frame tokens.
        doc: int64 [R, L] document of each token, -1 for padding.
        order: int64 [R, L] place in the document's stream; all tokens of a frame share one.
        copy: int64 [R, L] frame copy of each token, -1 for text.
        target: bool [R, L], True at tokens of targets that stand beside their frame.
        step: int64 [R, L] how many frames came before.
        expire: int64 [R, L] the first step that no longer sees the token.
        position: int64 [R, L, 5] rotary positions: order (a frame counts as one), step, row,
            column; and place, which counts every token of a frame (targets: as their frame).
        next_id: int64 [R, L] the text token that follows in the stream, -1 for none.
        visual: int64 [F * N] flat places (row * L + column) of the tokens of all copies.
        source: int64 [F] which latent a copy shows.
        before: int64 [F] the context copy of the frame before, -1 for a document's first.
        is_target: bool [F], whether the copy is to be learned.
        kind: int64 [F] and text_kind: int64 [R, L]: sample kind of each, for logging.
    """

    ids: torch.Tensor
    vision: torch.Tensor
    doc: torch.Tensor
    order: torch.Tensor
    copy: torch.Tensor
    target: torch.Tensor
    step: torch.Tensor
    expire: torch.Tensor
    position: torch.Tensor
    next_id: torch.Tensor
    visual: torch.Tensor
    source: torch.Tensor
    before: torch.Tensor
    is_target: torch.Tensor
    kind: torch.Tensor
    text_kind: torch.Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`."""
        return Batch(**{f.name: moved(getattr(self, f.name), device) for f in fields(self)})

    def __reduce__(self) -> tuple[Any, ...]:
        """Go to other processes as plain bytes; PyTorch would open a file for each tensor."""
        return _batch_of, tuple(getattr(self, f.name).cpu().numpy() for f in fields(self))

    def first_places(self) -> torch.Tensor:
        """Flat place of the first token of every frame copy, int64 [F]."""
        return self.visual.view(len(self.source), -1)[:, 0]

    def row_of_copies(self, length: int) -> torch.Tensor:
        """The row that every frame copy lies in, int64 [F]."""
        return self.first_places() // length

    def last_frames(self, shown: torch.Tensor) -> torch.Tensor:
        """For copies that show [F, N, C], the frame before each as shown; zeros for none."""
        there = (self.before >= 0).view(-1, 1, 1)
        return torch.where(there, shown[self.before.clamp(min=0)], 0.0)

    def context_of_targets(self) -> torch.Tensor:
        """For every target, in order, the copy that is the same frame's context."""
        places = self.first_places()
        key = self.doc.flatten()[places] * (1 << 20) + self.order.flatten()[places]
        contexts = (~self.is_target).nonzero().squeeze(1)
        order = key[contexts].argsort()
        found = torch.searchsorted(key[contexts][order], key[self.is_target])
        return contexts[order[found]]

    def take_rows(self, rows: torch.Tensor, inside: torch.Tensor, length: int) -> "Batch":
        """The batch of some rows only; `inside` is bool [F], the copies that lie in them."""
        place = torch.full((len(self.ids),), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        values = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "visual":
                value = value.view(len(inside), -1)[inside]
                value = (place[value // length] * length + value % length).flatten()
            elif field.name == "before":  # copies of one document lie in one row
                number = inside.cumsum(0) - 1
                value = torch.where(value < 0, value, number[value])[inside]
            elif field.name in ("source", "is_target", "kind"):
                value = value[inside]
            else:
                value = value[rows]
            values[field.name] = value
        return Batch(**values)


def _batch_of(*columns: np.ndarray) -> Batch:
    return Batch(*map(torch.from_numpy, columns))


def attention_mask(batch: Batch) -> torch.Tensor:
    """Return bool [R, L, L], True where query may see key, see `_sees`."""
    table = _compared(batch)
    return _sees(
        {name: column.unsqueeze(2) for name, column in table.items()},
        {name: column.unsqueeze(1) for name, column in table.items()},
    )


def block_mask(batch: Batch) -> "BlockMask":
    """Return the same as blocks for FlexAttention, which skips those that nobody sees."""
    from torch.nn.attention.flex_attention import create_block_mask

    table = _compared(batch)

    def rule(row, head, query, key):  # type: ignore[no-untyped-def]
        del head
        return _sees(
            {name: column[row, query] for name, column in table.items()},
            {name: column[row, key] for name, column in table.items()},
        )

    rows, length = batch.ids.shape
    return create_block_mask(rule, rows, None, length, length, device=batch.ids.device.type)


def visibility(batch: Batch) -> "torch.Tensor | BlockMask":
    """Who sees whom, in the form that is fast on the batch's device.

    Blocks that are skipped pay where rows are long; up to `_SHORT` tokens they cost more than the
    dense product (docs/speed.md), and are compiled anew for new sizes.
    """
    long = batch.ids.shape[1] > _SHORT
    return block_mask(batch) if batch.ids.is_cuda and long else attention_mask(batch)


_SHORT = 4096


RULED = ("doc", "order", "copy", "target", "step", "expire")
"""The columns of a batch that decide who sees whom."""


def _compared(batch: Batch) -> dict[str, torch.Tensor]:
    """What `_sees` compares, int64 [R, L] each.

    Each document has numbers of its own, so that one comparison also tells documents apart.
    """
    length = batch.doc.shape[1]
    first = batch.doc * (length + 1)
    order = first + batch.order
    place = torch.arange(length, device=order.device)
    return {
        "own": torch.where(batch.copy < 0, -1 - place, batch.copy),
        "order": order,
        "since": order.masked_fill(batch.target, torch.iinfo(order.dtype).max),
        "step": first + batch.step,
        "expire": first + batch.expire.clamp(max=length + 1),
    }


def _sees(q: dict[str, torch.Tensor], k: dict[str, torch.Tensor]) -> torch.Tensor:
    """The rule, for queries and keys given by their columns of `_compared`.

    A token sees its own document's earlier tokens that have not expired, and the whole of its
    own frame copy; of targets, only its own. Padding sees itself, so that no row is empty.

    Few comparisons, none of them of bools: with the columns of a batch as they are, a GPU's
    registers do not hold FlexAttention's forward kernel (docs/speed.md).
    """
    earlier = (k["since"] < q["order"]) & (q["step"] < k["expire"])
    return (q["own"] == k["own"]) | earlier


_RUN = ("size", "order", "step", "expire", "place", "copy")
"""Of a run: its tokens, its first token's columns (see `Batch`), its frame copy or -1 for text."""


@dataclass(frozen=True)
class Laid:
    """One document as runs of tokens, before it is placed in a row.

    Attributes:
        runs: the numbers of `_RUN` for each run: text that one step sees, or a frame copy.
        ids: the tokens of all text runs, in order.
        copies: (latent, whether it is to be learned, context copy of the frame before or -1) of
            each frame copy; contexts come first.
        size: tokens in all.
    """

    runs: list[tuple[int, ...]]
    ids: list[int]
    copies: list[tuple[int, bool, int]]
    size: int


def lay_out(document: Document, cells: int, window: int, in_place: bool = False) -> Laid:
    """Return the runs of one document.

    Args:
        document: its spans; `<bos>`, `<boi>`, `<eoi>` are added here.
        cells: tokens of a frame.
        window: how many earlier frames a frame sees.
        in_place: a frame is its own target; there are no copies.
    """
    runs: list[tuple[int, ...]] = [(1, 0, 0, FOREVER, 0, -1)]
    ids = [BOS]
    copies: list[tuple[int, bool, int]] = []
    beside: list[tuple[int, int, int, int]] = []  # latent, order, step, place
    told = -1  # the run of the instruction that holds
    order = place = 1
    step = 0
    for span in document:
        out = step + window + 1  # the step that no longer sees what goes with this frame
        if isinstance(span, Text):
            if span.role == "instruction":
                if told >= 0:
                    runs[told] = (*runs[told][:3], step, *runs[told][4:])
                told = len(runs)
            count = len(span.ids)
            runs.append((count, order, step, out if span.role == "action" else FOREVER, place, -1))
            ids += span.ids
            order += count
            place += count
            continue
        runs += (
            (1, order, step, out, place, -1),
            (cells, order + 1, step, out, place + 1, len(copies)),
            (1, order + 2, step, out, place + 1 + cells, -1),
        )
        ids += (BOI, EOI)
        copies.append((span.latent, span.target and in_place, step - 1))
        if span.target and not in_place:
            beside.append((span.latent, order + 1, step, place + 1))
        order += 3
        place += cells + 2
        step += 1
    for latent, at, since, first in beside:
        runs.append((cells, at, since, since + window + 1, first, len(copies)))
        copies.append((latent, True, since - 1))
    return Laid(runs, ids, copies, place + cells * len(beside))


def pack(
    documents: Sequence[Document],
    kinds: Sequence[int],
    grid: tuple[int, int],
    window: int,
    length: int,
    in_place: bool = False,
) -> Batch:
    """Pack documents into rows of `length` tokens, first fit, and return them as a batch.

    Args:
        documents: what to pack.
        kinds: sample kind of each.
        grid: rows and columns of a frame's tokens.
        window: how many earlier frames a frame sees.
        length: tokens of a row.
        in_place: a frame is its own target; there are no copies.

    Raises:
        ValueError: a document is longer than `length`.
    """
    cells = grid[0] * grid[1]
    every = [lay_out(document, cells, window, in_place) for document in documents]
    numbers, begins, rows = _first_fit([one.size for one in every], length)
    laid = [every[number] for number in numbers]

    # A run is a few numbers; its tokens are made for the whole batch at once.
    facts = chain.from_iterable(chain.from_iterable(one.runs for one in laid))
    runs = np.fromiter(facts, np.int64).reshape(-1, len(_RUN))
    size = runs[:, 0]
    nth = np.arange(size.sum()) - np.repeat(size.cumsum() - size, size)  # of its run
    of = {name: np.repeat(runs[:, i], size) for i, name in enumerate(_RUN) if i}
    text = of["copy"] < 0
    of["order"] += np.where(text, nth, 0)
    of["place"] += nth
    cell = np.where(text, 0, nth)

    sizes = np.array([one.size for one in laid], np.int64)
    of["doc"] = np.repeat(np.array(numbers, np.int64), sizes)
    of["text_kind"] = np.array(kinds, np.int64)[of["doc"]]
    of["ids"] = np.full(len(nth), PAD)
    of["ids"][text] = list(chain.from_iterable(one.ids for one in laid))
    follows = text[:-1] & text[1:] & (of["doc"][:-1] == of["doc"][1:])
    of["next_id"] = np.full(len(nth), -1)
    of["next_id"][:-1][follows] = of["ids"][1:][follows]

    copies = list(chain.from_iterable(one.copies for one in laid))
    counts = np.array([len(one.copies) for one in laid], np.int64)
    first = counts.cumsum() - counts  # copy of each document
    of["copy"] += np.where(text, 0, np.repeat(first, sizes))
    source, is_target, before = np.array(copies, np.int64).reshape(-1, 3).T
    before = np.where(before < 0, -1, before + np.repeat(first, counts))

    where = np.repeat(np.array(begins, np.int64) - (sizes.cumsum() - sizes), sizes)
    where += np.arange(len(nth))  # flat place of each token
    empty = {"ids": PAD, "doc": -1, "copy": -1, "next_id": -1, "text_kind": -1}
    table = {}
    for name in ("ids", "doc", "order", "copy", "step", "expire", "next_id", "text_kind"):
        table[name] = np.full(rows * length, empty.get(name, 0))
        if name == "order":  # padding: every token has its own place
            table[name][:] = np.tile(np.arange(length), rows)
        table[name][where] = of[name]
    position = np.zeros((rows * length, 5), np.int64)
    axes = (of["order"], of["step"], cell // grid[1], cell % grid[1], of["place"])
    position[where] = np.stack(axes, axis=1)
    target = np.zeros(rows * length, bool)
    if not in_place:
        target[where[~text]] = np.repeat(is_target.astype(bool), cells)
    tensors = {k: torch.from_numpy(v.reshape(rows, length)) for k, v in table.items()}
    return Batch(
        **tensors,
        vision=tensors["copy"] >= 0,
        target=torch.from_numpy(target.reshape(rows, length)),
        position=torch.from_numpy(position.reshape(rows, length, 5)),
        visual=torch.from_numpy(where[~text]),
        source=torch.from_numpy(source.copy()),
        before=torch.from_numpy(before),
        is_target=torch.from_numpy(is_target.astype(bool)),
        kind=torch.from_numpy(np.repeat(np.array(kinds, np.int64)[numbers], counts)),
    )


def _first_fit(sizes: Sequence[int], length: int) -> tuple[list[int], list[int], int]:
    """Give each document the first row with room for it.

    Returns:
        Numbers of the documents in the order in which they lie in the rows; the flat place at
        which each of these begins; how many rows there are.
    """
    used: list[int] = []
    begins: list[tuple[int, int]] = []
    for number, size in enumerate(sizes):
        if size > length:
            raise ValueError(f"a document has {size} tokens, a row holds {length}")
        row = next((r for r, u in enumerate(used) if u + size <= length), len(used))
        if row == len(used):
            used.append(0)
        begins.append((row * length + used[row], number))
        used[row] += size
    begins.sort()
    return [number for _, number in begins], [begin for begin, _ in begins], len(used)
