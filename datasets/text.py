"""Text stores: documents of plain text in a Zarr v3 hierarchy, committed shard by shard.

    x.zarr/zarr.json                  group; attributes: schema, provenance, val
    x.zarr/shards/zarr.json           group
    x.zarr/shards/<id>/zarr.json      group; attributes: the record of the shard
    x.zarr/shards/<id>/packed/        uint8 [bytes], one chunk, zstd level 3 + crc32c
    x.zarr/tokens/<hash>/<id>/...     the same for a shard's token ids, by tokenizer
    x.zarr/*/.tmp-*                   in the making; never read (at URLs: `disk`)

A shard holds about 4 MiB of documents. As in an episode (`schema`), the record's `layout` says
what is where in `packed`: `text` uint8 [N], the documents' UTF-8 one after the other, `ends`
int64 [D], where each ends, and `names`, a JSON list in UTF-8. Of tokens it is `ids`, those of all
pieces one after the other, `ends` int64 [P], and `pieces` int64 [D], how many each document has.

A document is of the split 'val' if the first 8 bytes of its text's SHA-256, as a number from 0 to
1, lie below the store's `val`; else it is of 'train'. The same text is kept once.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np

from worldmodel.datasets import disk, schema
from worldmodel.datasets.arrays import write_bytes, write_group
from worldmodel.datasets.disk import Place, place
from worldmodel.datasets.store import command_line, open_array
from worldmodel.datasets.url import Unreachable
from worldmodel.errors import UserError
from worldmodel.text import TextTokenizer

SCHEMA_NAME = "worldmodel.text"
SCHEMA_VERSION = 1
SPLITS = ("train", "val")
SHARDS, TOKENS = "shards", "tokens"
SHARD_BYTES = 1 << 22
PIECE = 400  # characters of a piece, about as many as a training document can take

_DAMAGE = (OSError, ValueError, RuntimeError, KeyError, TypeError, IndexError)


@dataclass(frozen=True)
class TextDocument:
    """One text.

    Attributes:
        name: where it comes from, for instance its file below the folder.
        text: the whole of it.
    """

    name: str
    text: str

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the text in UTF-8."""
        return hashlib.sha256(self.text.encode()).digest()

    def split(self, val: float) -> str:
        """Return 'val' for a share `val` of all texts, else 'train'; always the same."""
        return "val" if int.from_bytes(self.digest[:8]) < val * 2**64 else "train"


def is_text_store(path: str | Place) -> bool:
    """Return whether a text store lies at `path`.

    Raises:
        UserError: a URL that cannot be used, or does not answer.
    """
    try:
        attributes = json.loads((place(path) / disk.RECORD).read_text())["attributes"]
        return attributes["schema"]["name"] == SCHEMA_NAME
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        return False


def cut(text: str, size: int = PIECE) -> list[str]:
    """Return the text in pieces of about `size` characters, cut between words.

    White space becomes one space; a short rest joins the piece before it.
    """
    pieces: list[str] = []
    words: list[str] = []
    length = 0
    for word in text.split():
        for part in (word[i : i + size] for i in range(0, len(word), size)):
            words.append(part)
            length += len(part) + 1
            if length >= size:
                pieces.append(" ".join(words))
                words, length = [], 0
    if rest := " ".join(words):
        if pieces and length < size / 4:
            pieces[-1] += f" {rest}"
        else:
            pieces.append(rest)
    return pieces


def write_text(
    path: str | Place,
    documents: Iterable[TextDocument],
    source: str,
    licence: str,
    val: float = 0.1,
) -> tuple[int, int]:
    """Add documents to the text store at `path`, made if there is none.

    What the store already holds is not added again, so a stopped run goes on when repeated.

    Args:
        path: folder of the store, or its URL.
        documents: what to add; empty ones are left out.
        source: where they come from; kept when the store is made.
        licence: under which they may be used; kept as well.
        val: share of the documents that are never trained on; kept when the store is made.

    Returns:
        How many documents were added, and how many were there already.

    Raises:
        UserError: something else at the path, a share out of range, a disk that is full.
    """
    path = disk.writable(path)
    if not 0 <= val < 1:
        raise UserError(f"val={val} is a share of the documents, from 0 to below 1.")
    _refuse_other(path)
    there = is_text_store(path)
    known = {document.digest for document in TextStore(path).documents()} if there else set()
    added, seen, batch, size = 0, set[bytes](), list[TextDocument](), 0
    for document in documents:
        if not document.text.strip() or document.digest in seen:
            continue
        seen.add(document.digest)
        if document.digest in known:
            continue
        batch.append(document)
        size += len(document.text.encode())
        added += 1
        if size >= SHARD_BYTES:
            _add(path, batch, source, licence, val)
            batch, size = [], 0
    if batch:
        _add(path, batch, source, licence, val)
    return added, len(seen) - added


class TextStore:
    """Reads the documents of a text store.

    Attributes:
        path: folder of the store, or its URL.
        provenance: package version, time, licence, source and command of the store's making.
        val: share of the documents that are of the split 'val'.
        ids: names of the committed shards, sorted.
    """

    def __init__(self, path: str | Place) -> None:
        """Open the store at `path`.

        Raises:
            UserError: no text store there, or one of another schema version.
        """
        self.path = place(path)
        attributes = _attributes(self.path)
        self.provenance: dict[str, Any] = dict(attributes["provenance"])
        self.val = float(attributes["val"])
        self.ids = [name for name in disk.members(self.path, SHARDS) if name.startswith("text-")]

    def read(self, shard: str) -> list[TextDocument]:
        """Return a shard's documents; every byte is checked.

        Raises:
            UserError: the shard is damaged.
        """
        arrays = _read(self.path, f"{SHARDS}/{shard}")
        data, ends = arrays["text"].tobytes(), arrays["ends"].tolist()
        names = json.loads(arrays["names"].tobytes())
        starts = [0, *ends[:-1]]
        return [
            TextDocument(name, data[start:end].decode())
            for name, start, end in zip(names, starts, ends, strict=True)
        ]

    def documents(self, split: str | None = None) -> Iterator[TextDocument]:
        """Yield all documents, or those of one split, in the store's order."""
        for shard in self.ids:
            for document in self.read(shard):
                if split in (None, document.split(self.val)):
                    yield document

    def pieces(self, split: str) -> list[str]:
        """Return the documents of a split cut into pieces; see `cut`."""
        return [piece for document in self.documents(split) for piece in cut(document.text)]

    def tokens(self, tokenizer: TextTokenizer, split: str) -> list[np.ndarray] | None:
        """Return the token ids of each of `pieces`, None where they are not stored for it all.

        Raises:
            UserError: stored ids that are damaged.
        """
        folder = f"{TOKENS}/{tokenizer_hash(tokenizer)}"
        found: list[np.ndarray] = []
        for shard in self.ids:
            if not disk.is_committed(self.path / folder / shard):
                return None
            arrays = _read(self.path, f"{folder}/{shard}")
            every = iter(np.split(arrays["ids"], arrays["ends"][:-1]))
            for document, count in zip(self.read(shard), arrays["pieces"].tolist(), strict=True):
                mine = [next(every) for _ in range(count)]
                found += mine if document.split(self.val) == split else []
        return found

    def tokenizers(self) -> list[str]:
        """Return the hashes of the tokenizers whose ids are stored, of all shards or of some."""
        try:
            return disk.names(self.path / TOKENS)
        except FileNotFoundError:
            return []

    def size_on_disk(self) -> int:
        """Return the bytes that the store's text takes, token ids included.

        Raises:
            UserError: damaged records.
        """
        places = [f"{SHARDS}/{shard}" for shard in self.ids]
        places += [f"{TOKENS}/{digest}/{s}" for digest in self.tokenizers() for s in self.ids]
        records = (_record(self.path, p) for p in places if disk.is_committed(self.path / p))
        return sum(facts["bytes"] for record in records for facts in record["files"].values())


def tokenizer_hash(tokenizer: TextTokenizer) -> str:
    """Return 12 hex digits that differ between tokenizers, and between ways to cut pieces."""
    return hashlib.sha256(f"{PIECE} {tokenizer.to_json()}".encode()).hexdigest()[:12]


def write_tokens(path: str | Place, tokenizer: TextTokenizer) -> int:
    """Store the token ids of all documents beside them; return how many there are.

    Raises:
        UserError: no text store, a damaged one, or one that cannot be written.
    """
    opened = TextStore(path)
    kind = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    folder = f"{TOKENS}/{tokenizer_hash(tokenizer)}"
    total = 0
    try:
        disk.create_group(opened.path / TOKENS)
        disk.create_group(opened.path / folder)
    except OSError as error:
        raise UserError(f"{opened.path} cannot be written: {error}.") from error
    for shard in opened.ids:
        if disk.is_committed(opened.path / folder / shard):
            total += len(_read(opened.path, f"{folder}/{shard}")["ids"])
            continue
        pieces = [cut(document.text) for document in opened.read(shard)]
        ids = [tokenizer.encode(piece) for of_one in pieces for piece in of_one]
        arrays = {
            "ids": np.array([i for of_one in ids for i in of_one], kind),
            "ends": np.cumsum([len(of_one) for of_one in ids], dtype=np.int64),
            "pieces": np.array([len(of_one) for of_one in pieces], np.int64),
        }
        _write(opened.path, f"{folder}/{shard}", arrays)
        total += len(arrays["ids"])
    return total


def faults(opened: TextStore) -> list[str]:
    """Return a sentence about everything in a store that is damaged."""
    found = []
    tokens = [f"{TOKENS}/{h}/{s}" for h in opened.tokenizers() for s in opened.ids]
    for where in [*(f"{SHARDS}/{s}" for s in opened.ids), *tokens]:
        if not disk.is_committed(opened.path / where):
            continue  # tokens of a shard that came later
        try:
            arrays = _read(opened.path, where)
            whole = arrays["text" if where.startswith(SHARDS) else "ids"]
            ends = arrays["ends"]
            if len(whole) != (ends[-1] if len(ends) else 0) or (np.diff(ends) < 0).any():
                found.append(f"{opened.path}: '{where}' does not end where its documents do.")
        except Unreachable:
            raise  # which says nothing about the data
        except UserError as error:
            found.append(str(error))
    return found


def listed_folders(opened: TextStore) -> list[str]:
    """Return the folders of a store that readers list."""
    found = opened.tokenizers()
    return [SHARDS, *([TOKENS] if found else []), *(f"{TOKENS}/{digest}" for digest in found)]


def leftovers(opened: TextStore) -> list[Place]:
    """Return what killed writers left in a store: temporary folders, or marks at a URL."""
    folders = listed_folders(opened)
    return [left for folder in folders for left in disk.leftovers(opened.path / folder)]


def _add(path: Place, documents: list[TextDocument], source: str, licence: str, val: float) -> None:
    """Commit a shard, and the store before it if there is none."""
    if not is_text_store(path):
        _create(path, source, licence, val)
    data = [document.text.encode() for document in documents]
    whole = b"".join(data)
    names = schema.to_text([document.name for document in documents]).encode()
    arrays = {
        "text": np.frombuffer(whole, np.uint8),
        "ends": np.cumsum([len(part) for part in data], dtype=np.int64),
        "names": np.frombuffer(names, np.uint8),
    }
    digest = hashlib.sha256(whole + names).hexdigest()[:12]
    _write(path, f"{SHARDS}/text-{len(data):06d}-{len(whole):09d}-{digest}", arrays)


def _write(path: Place, where: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Commit arrays as one group: it is there whole or not at all."""
    member = path / where
    packed, layout = schema.pack(arrays)
    try:
        with disk.committing(member) as folder:
            write_bytes(folder / "packed", packed)
            record = {"id": member.name, "layout": layout, "files": disk.facts_of_files(folder)}
            write_group(folder, schema.seal(record))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}.") from error


def _read(path: Place, where: str) -> dict[str, np.ndarray]:
    record = _record(path, where)
    try:
        with disk.on_disk(path / where, record["files"]) as folder:
            for name, expected in record["files"].items():
                disk.verified(folder, name, expected)
            packed = np.asarray(open_array(folder / "packed")[:]).tobytes()
        return schema.unpack(packed, record["layout"])
    except UserError:
        raise
    except _DAMAGE as error:
        raise _damaged(path, where, error) from error


def _record(path: Place, where: str) -> dict[str, Any]:
    member = path / where
    try:
        record = json.loads((member / disk.RECORD).read_text())["attributes"]
        if not schema.sealed(record) or record["id"] != member.name:
            raise ValueError("its checksum does not match")
        return record
    except UserError:
        raise
    except _DAMAGE as error:
        raise _damaged(path, where, error) from error


def _damaged(path: Place, where: str, error: Exception) -> UserError:
    return UserError(
        f"{path}: '{where}' is damaged ({error}). Delete that folder and give `worldmodel "
        "data text` again, which adds what is missing."
    )


def _attributes(path: Place) -> Mapping[str, Any]:
    if not is_text_store(path):
        kind = "is not a text store" if path.exists() else "does not exist"
        raise UserError(
            f"{path} {kind}; `worldmodel data text source=FOLDER out={path.name or 'x'}.zarr` "
            "makes one of a folder of text files."
        )
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    number = attributes["schema"].get("version")
    if number != SCHEMA_VERSION:
        raise UserError(
            f"{path} has text schema version {number}, but this worldmodel "
            f"({version('worldmodel')}) reads version {SCHEMA_VERSION}."
        )
    if not {"provenance", "val"} <= set(attributes):
        raise UserError(f"{path / 'zarr.json'} is damaged: it should tell provenance and val.")
    return attributes


def _refuse_other(path: Place) -> None:
    if not disk.is_free(path, SHARDS) and not is_text_store(path):
        raise UserError(f"{path} exists and is not a text store; choose another path.")


def _create(path: Place, source: str, licence: str, val: float) -> None:
    attributes = {
        "schema": {"name": SCHEMA_NAME, "version": SCHEMA_VERSION},
        "provenance": {
            "package": f"worldmodel {version('worldmodel')}",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "licence": licence,
            "source": source,
            "command": command_line(),
        },
        "val": val,
    }
    try:
        disk.create(path, SHARDS, attributes)
    except OSError as error:
        raise UserError(f"A text store cannot be made at {path}: {error}.") from error
