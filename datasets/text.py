"""Text stores: documents of plain text in a Zarr v3 hierarchy, committed shard by shard.

    x.zarr/zarr.json                  group; attributes: schema, provenance, val
    x.zarr/shards/zarr.json           group
    x.zarr/shards/<id>/zarr.json      group; attributes: the record of the shard
    x.zarr/shards/<id>/packed/        uint8 [bytes], one chunk, zstd level 3 + crc32c
    x.zarr/tokens/<hash>/<id>/...     the same for a shard's token ids, by tokenizer
    x.zarr/*/.tmp-*                   in the making; never read

A shard holds about 4 MiB of documents. As in an episode (`schema`), the record's `layout` says
what is where in `packed`: `text` uint8 [N], the documents' UTF-8 one after the other, `ends`
int64 [D], where each ends, and `names`, a JSON list in UTF-8. Of tokens it is `ids`, those of all
pieces one after the other, `ends` int64 [P], and `pieces` int64 [D], how many each document has.

A document is of the split 'val' if the first 8 bytes of its text's SHA-256, as a number from 0 to
1, lie below the store's `val`; else it is of 'train'. The same text is kept once.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from worldmodel.datasets import schema, store
from worldmodel.datasets.schema import TEMPORARY
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


def is_text_store(path: str | Path) -> bool:
    """Return whether a text store lies at `path`."""
    try:
        attributes = json.loads((Path(path) / "zarr.json").read_text())["attributes"]
        return attributes["schema"]["name"] == SCHEMA_NAME
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
    path: str | Path, documents: Iterable[TextDocument], source: str, licence: str, val: float = 0.1
) -> tuple[int, int]:
    """Add documents to the text store at `path`, made if there is none.

    What the store already holds is not added again, so a stopped run goes on when repeated.

    Args:
        path: folder of the store.
        documents: what to add; empty ones are left out.
        source: where they come from; kept when the store is made.
        licence: under which they may be used; kept as well.
        val: share of the documents that are never trained on; kept when the store is made.

    Returns:
        How many documents were added, and how many were there already.

    Raises:
        UserError: something else at the path, a share out of range, a disk that is full.
    """
    path = Path(path)
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
        path: folder of the store.
        provenance: package version, time, licence, source and command of the store's making.
        val: share of the documents that are of the split 'val'.
        ids: names of the committed shards, sorted.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the store at `path`.

        Raises:
            UserError: no text store there, or one of another schema version.
        """
        self.path = Path(path)
        attributes = _attributes(self.path)
        self.provenance: dict[str, Any] = dict(attributes["provenance"])
        self.val = float(attributes["val"])
        self.ids = _shard_names(self.path / SHARDS)

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
            if not (self.path / folder / shard).is_dir():
                return None
            arrays = _read(self.path, f"{folder}/{shard}")
            every = iter(np.split(arrays["ids"], arrays["ends"][:-1]))
            for document, count in zip(self.read(shard), arrays["pieces"].tolist(), strict=True):
                mine = [next(every) for _ in range(count)]
                found += mine if document.split(self.val) == split else []
        return found

    def tokenizers(self) -> list[str]:
        """Return the hashes of the tokenizers whose ids are stored, of all shards or of some."""
        folder = self.path / TOKENS
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    def size_on_disk(self) -> int:
        """Return the bytes that the store takes, token ids included."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def tokenizer_hash(tokenizer: TextTokenizer) -> str:
    """Return 12 hex digits that differ between tokenizers, and between ways to cut pieces."""
    return hashlib.sha256(f"{PIECE} {tokenizer.to_json()}".encode()).hexdigest()[:12]


def write_tokens(path: str | Path, tokenizer: TextTokenizer) -> int:
    """Store the token ids of all documents beside them; return how many there are.

    Raises:
        UserError: no text store, a damaged one, or one that cannot be written.
    """
    opened = TextStore(path)
    kind = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    folder = f"{TOKENS}/{tokenizer_hash(tokenizer)}"
    total = 0
    for shard in opened.ids:
        if (opened.path / folder / shard).is_dir():
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
    for place in [*(f"{SHARDS}/{s}" for s in opened.ids), *tokens]:
        if not (opened.path / place).is_dir():
            continue  # tokens of a shard that came later
        try:
            arrays = _read(opened.path, place)
            whole = arrays["text" if place.startswith(SHARDS) else "ids"]
            ends = arrays["ends"]
            if len(whole) != (ends[-1] if len(ends) else 0) or (np.diff(ends) < 0).any():
                found.append(f"{opened.path}: '{place}' does not end where its documents do.")
        except UserError as error:
            found.append(str(error))
    return found


def leftovers(opened: TextStore) -> list[Path]:
    """Return the temporary folders that killed writers left in a store."""
    found = sorted(opened.path.glob(f"*/{TEMPORARY}*")) + sorted(
        opened.path.glob(f"{TOKENS}/*/{TEMPORARY}*")
    )
    return [folder for folder in found if store._is_leftover(folder)]


def _add(path: Path, documents: list[TextDocument], source: str, licence: str, val: float) -> None:
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


def _write(path: Path, place: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Commit arrays as one group: it is there whole or not at all."""
    final = path / place
    temporary = final.with_name(f"{TEMPORARY}{final.name}.{_maker()}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        packed, layout = schema.pack(arrays)
        store._write_array(temporary / "packed", np.frombuffer(packed, np.uint8))
        files = {name: store._file_facts(temporary / name) for name in store._files(temporary)}
        record = schema.seal({"id": final.name, "layout": layout, "files": files})
        zarr.create_group(temporary, zarr_format=3, attributes=record)
        store._sync_tree(temporary)
        store._commit(temporary, final)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(path: Path, place: str) -> dict[str, np.ndarray]:
    folder = path / place
    try:
        record = json.loads((folder / "zarr.json").read_text())["attributes"]
        if not schema.sealed(record) or record["id"] != folder.name:
            raise ValueError("its checksum does not match")
        for name, expected in record["files"].items():
            if store._file_facts(folder / name) != expected:
                raise ValueError(f"{name} is not what it was")
        packed = np.asarray(store._open_array(folder / "packed")[:]).tobytes()
        return schema.unpack(packed, record["layout"])
    except _DAMAGE as error:
        raise UserError(
            f"{path}: '{place}' is damaged ({error}). Delete that folder and give `worldmodel "
            "data text` again, which adds what is missing."
        ) from error


def _shard_names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.startswith("text-"))
    except OSError as error:
        raise UserError(f"{folder.parent} has lost its folder '{SHARDS}': {error}.") from error


def _attributes(path: Path) -> Mapping[str, Any]:
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


def _maker() -> str:
    return f"{store._host()}.{os.getpid()}.{time.monotonic_ns()}"


def _refuse_other(path: Path) -> None:
    empty = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    if not empty and not is_text_store(path):
        raise UserError(f"{path} exists and is not a text store; choose another path.")


def _create(path: Path, source: str, licence: str, val: float) -> None:
    attributes = {
        "schema": {"name": SCHEMA_NAME, "version": SCHEMA_VERSION},
        "provenance": {
            "package": f"worldmodel {version('worldmodel')}",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "licence": licence,
            "source": source,
            "command": store._command_line(),
        },
        "val": val,
    }
    temporary = path.with_name(f".{path.name}.{_maker()}")
    try:
        zarr.create_group(temporary, zarr_format=3, attributes=attributes)
        zarr.create_group(temporary / SHARDS, zarr_format=3)
        store._sync_tree(temporary)
        store._commit(temporary, path)
    except OSError as error:
        raise UserError(f"A text store cannot be made at {path}: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
