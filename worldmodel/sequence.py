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
from typing import TYPE_CHECKING

import numpy as np
import torch

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
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

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


def attention_mask(batch: Batch) -> torch.Tensor:
    """Return bool [R, L, L], True where query may see key, see `_sees`."""
    table = {name: getattr(batch, name) for name in RULED}
    return _sees(
        {name: column.unsqueeze(2) for name, column in table.items()},
        {name: column.unsqueeze(1) for name, column in table.items()},
    )


def block_mask(batch: Batch) -> "BlockMask":
    """Return the same as blocks for FlexAttention, which skips those that nobody sees."""
    from torch.nn.attention.flex_attention import create_block_mask

    table = {name: getattr(batch, name) for name in RULED}

    def rule(row, head, query, key):  # type: ignore[no-untyped-def]
        del head
        return _sees(
            {name: column[row, query] for name, column in table.items()},
            {name: column[row, key] for name, column in table.items()},
        )

    rows, length = batch.ids.shape
    return create_block_mask(rule, rows, None, length, length, device=batch.ids.device.type)


def visibility(batch: Batch) -> "torch.Tensor | BlockMask":
    """Who sees whom, in the form that is fast on the batch's device."""
    return block_mask(batch) if batch.ids.is_cuda else attention_mask(batch)


RULED = ("doc", "order", "copy", "target", "step", "expire")
"""The columns of a batch that decide who sees whom."""


def _sees(q: dict[str, torch.Tensor], k: dict[str, torch.Tensor]) -> torch.Tensor:
    """The rule, for queries and keys given by their columns of a batch.

    A token sees its own document's earlier tokens that have not expired, and the whole of its
    own frame copy; of targets, only its own. Padding sees itself, so that no row is empty.
    """
    own = (q["order"] == k["order"]) & (q["copy"] == k["copy"])
    earlier = (k["order"] < q["order"]) & ~k["target"] & (q["step"] < k["expire"])
    return (q["doc"] == k["doc"]) & (own | earlier)


@dataclass
class _Tokens:
    """One document as columns, before it is placed in a row."""

    columns: dict[str, list[int]]
    copies: list[tuple[int, int, bool, int]]  # (first column, latent, is target, copy before)


def lay_out(
    document: Document, grid: tuple[int, int], window: int, in_place: bool = False
) -> _Tokens:
    """Return the columns of one document.

    Args:
        document: its spans; `<bos>`, `<boi>`, `<eoi>` are added here.
        grid: rows and columns of a frame's tokens.
        window: how many earlier frames a frame sees.
        in_place: a frame is its own target; there are no copies.
    """
    names = ("ids", "order", "copy", "step", "expire", "time", "row", "column", "place", "next_id")
    columns: dict[str, list[int]] = {name: [] for name in names}
    copies: list[tuple[int, int, bool, int]] = []
    beside: list[tuple[int, int, int, int, int]] = []  # latent, order, step, time, place
    instruction: list[int] = []
    order = step = time = place = 0

    def put(token: int, expire: int) -> None:
        nonlocal order, time, place
        values = (token, order, -1, step, expire, time, 0, 0, place, -1)
        for name, value in zip(names, values, strict=True):
            columns[name].append(value)
        order += 1
        time += 1
        place += 1

    def put_frame(latent: int, at: tuple[int, int, int, int], target: bool) -> None:
        at_order, at_step, at_time, at_place = at
        number = len(copies)  # contexts come first, in order: the copy before is step - 1
        copies.append((len(columns["ids"]), latent, target, at_step - 1))
        for cell in range(grid[0] * grid[1]):
            values = (PAD, at_order, number, at_step, at_step + window + 1, at_time)
            values += (*divmod(cell, grid[1]), at_place + cell, -1)
            for name, value in zip(names, values, strict=True):
                columns[name].append(value)

    put(BOS, FOREVER)
    for span in document:
        if isinstance(span, Text):
            if span.role == "instruction":
                for column in instruction:
                    columns["expire"][column] = step
                instruction = list(range(len(columns["ids"]), len(columns["ids"]) + len(span.ids)))
            expire = step + window + 1 if span.role == "action" else FOREVER
            for token in span.ids:
                columns["next_id"][-1] = token if columns["copy"][-1] < 0 else -1
                put(token, expire)
        else:
            columns["next_id"][-1] = BOI
            put(BOI, step + window + 1)
            put_frame(span.latent, (order, step, time, place), target=span.target and in_place)
            if span.target and not in_place:
                beside.append((span.latent, order, step, time, place))
            order += 1
            time += 1
            place += grid[0] * grid[1]
            put(EOI, step + window + 1)
            step += 1
    for latent, *at in beside:
        put_frame(latent, (at[0], at[1], at[2], at[3]), target=True)
    return _Tokens(columns, copies)


def pack(
    documents: Sequence[Document],
    kinds: Sequence[int],
    grid: tuple[int, int],
    window: int,
    length: int,
    in_place: bool = False,
) -> Batch:
    """Pack documents into rows of `length` tokens, first fit, and return them as a batch.

    `in_place` as in `lay_out`.

    Raises:
        ValueError: a document is longer than `length`.
    """
    laid = [lay_out(document, grid, window, in_place) for document in documents]
    rows: list[list[int]] = []
    used: list[int] = []
    for number, tokens in enumerate(laid):
        size = len(tokens.columns["ids"])
        if size > length:
            raise ValueError(f"a document has {size} tokens, a row holds {length}")
        fit = next((r for r, u in enumerate(used) if u + size <= length), None)
        if fit is None:
            rows.append([])
            used.append(0)
            fit = len(rows) - 1
        rows[fit].append(number)
        used[fit] += size

    shape = (len(rows), length)
    empty = {"ids": PAD, "doc": -1, "copy": -1, "next_id": -1}
    names = ("ids", "doc", "order", "copy", "step", "expire", "next_id")
    names += ("time", "row", "column", "place")
    table = {name: np.full(shape, empty.get(name, 0), np.int64) for name in names}
    table["text_kind"] = np.full(shape, -1, np.int64)
    table["order"][:] = np.arange(length)  # padding: every token has its own place
    target = np.zeros(shape, bool)
    visual, source, before, is_target, copy_kind = [], [], [], [], []
    cells = grid[0] * grid[1]
    for r, members in enumerate(rows):
        at = 0
        for number in members:
            tokens = laid[number]
            size = len(tokens.columns["ids"])
            part = (r, slice(at, at + size))
            for name, values in tokens.columns.items():
                table[name][part] = values
            table["doc"][part] = number
            table["text_kind"][part] = kinds[number]
            copy = table["copy"][part]
            first_copy = len(source)
            copy[copy >= 0] += first_copy
            for first, latent, aims, previous in tokens.copies:
                places = np.arange(at + first, at + first + cells)
                visual.append(r * length + places)
                target[r, places] = aims and not in_place
                source.append(latent)
                before.append(first_copy + previous if previous >= 0 else -1)
                is_target.append(aims)
                copy_kind.append(kinds[number])
            at += size
    time, row, column, place = (table.pop(name) for name in ("time", "row", "column", "place"))
    position = np.stack([time, table["step"], row, column, place], axis=-1)
    tensors = {name: torch.from_numpy(values) for name, values in table.items()}
    return Batch(
        **tensors,
        vision=tensors["copy"] >= 0,
        target=torch.from_numpy(target),
        position=torch.from_numpy(position),
        visual=torch.from_numpy(np.concatenate(visual) if visual else np.zeros(0, np.int64)),
        source=torch.tensor(source, dtype=torch.int64),
        before=torch.tensor(before, dtype=torch.int64),
        is_target=torch.tensor(is_target, dtype=torch.bool),
        kind=torch.tensor(copy_kind, dtype=torch.int64),
    )
