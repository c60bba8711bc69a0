"""`worldmodel data` on text stores: text, info, validate, preview."""

import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from worldmodel.datasets import disk
from worldmodel.datasets import text as texts
from worldmodel.datasets.importers.text import (
    PYTHON,
    PYTHON_LICENCE,
    folder_documents,
    python_documents,
)
from worldmodel.datasets.text import TextDocument, TextStore
from worldmodel.errors import UserError, suggest
from worldmodel.text import TextTokenizer

_SHOWN = 320  # characters of a document in a preview


def add(
    source: str | None, out: str | None, tokenizer: str | None, licence: str, val: float
) -> int:
    """Add a folder of text, or what ships with CPython, to a store; tokenise the store if asked."""
    if not out:
        raise UserError("text needs the place to write to: out=PATH.")
    if not source and not tokenizer:
        raise UserError(
            "text needs what to read: source=FOLDER of .txt, .md or .rst files, or source=python "
            "for the documentation that ships with CPython."
        )
    chosen = load_tokenizer(tokenizer) if tokenizer else None
    if source:
        documents, origin, licence = _read_from(source, licence)
        added, known = texts.write_text(out, documents, origin, licence, val)
        more = f"; {known} were there already" if known else ""
        print(f"{out}: {added} documents added{more}.")
    if chosen:
        total = texts.write_tokens(out, chosen)
        print(f"{out}: {total} tokens of the tokenizer {texts.tokenizer_hash(chosen)}.")
    return 0


def info(path: str, split: str | None) -> int:
    """Print what a text store holds."""
    store = TextStore(path)
    documents = _chosen(store, split)
    size = sum(len(document.text.encode()) for document in documents)
    pieces = sum(len(texts.cut(document.text)) for document in documents)
    splits = Counter(document.split(store.val) for document in documents)
    by_split = "".join(f", {name} {count}" for name, count in sorted(splits.items()))
    rows = {
        "store": f"{store.path} (text schema version {texts.SCHEMA_VERSION})",
        "documents": f"{len(documents)}{by_split}",
        "text": f"{size / 1e6:.2f} MB in {pieces} pieces of about {texts.PIECE} characters",
        "on disk": f"{store.size_on_disk() / 1e6:.2f} MB in {len(store.ids)} shards",
        "tokens of": ", ".join(store.tokenizers()) or "(none stored)",
    }
    rows |= {key: str(value) for key, value in store.provenance.items()}
    for key, value in rows.items():
        print(f"{key:<10} {value}")
    return 0


def validate(path: str, clean: bool) -> int:
    """Check every byte of a text store; return 1 where something is wrong."""
    store = TextStore(path)
    problems = texts.faults(store)
    for problem in problems:
        print(problem)
    if left := texts.leftovers(store):
        print(f"{len(left)} unfinished shards of killed writers; clean=true removes them.")
        for one in left if clean else ():
            disk.remove_leftover(one)
    verdict = "all intact" if not problems else f"{len(problems)} problems"
    print(f"{store.path}: {len(store.ids)} shards checked, {verdict}.")
    return 1 if problems else 0


def preview(path: str, split: str | None, count: int, out: str | None) -> int:
    """Print how some documents begin, spread evenly over the store; into a file if asked."""
    store = TextStore(path)
    if count < 1:
        raise UserError(f"episodes={count} must be at least 1.")
    documents = _chosen(store, split)
    if not documents:
        raise UserError(f"{store.path} has no documents to show.")
    spread = np.linspace(0, len(documents) - 1, min(count, len(documents)))
    shown = "\n".join(_beginning(documents[i], store.val) for i in spread.round().astype(int))
    if not out:
        print(shown)
        return 0
    try:
        disk.local(out, "out").write_text(shown, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error}.") from error
    print(f"{out}: the beginnings of {len(spread)} documents.")
    return 0


def load_tokenizer(name: str) -> TextTokenizer:
    """Return the tokenizer of a tokenizer.json, a run's folder or a checkpoint.

    Raises:
        UserError: none of these.
    """
    path = Path(name)
    if path.is_dir() and (path / "tokenizer.json").exists():
        path = path / "tokenizer.json"
    elif not path.is_file():
        from worldmodel import checkpoint  # loads torch

        path = checkpoint.find(name) / "tokenizer.json"
    return TextTokenizer.load(path)


def _read_from(source: str, licence: str) -> tuple[Iterator[TextDocument], str, str]:
    """Return the documents, what to call their source, and their licence."""
    if source == PYTHON:
        licence = PYTHON_LICENCE if licence == "unspecified" else licence
        return python_documents(), f"CPython {sys.version.split()[0]}", licence
    documents = folder_documents(source, lambda line: print(line, file=sys.stderr))
    return documents, str(Path(source).resolve()), licence


def _chosen(store: TextStore, split: str | None) -> list[TextDocument]:
    if split not in (None, *texts.SPLITS):
        raise UserError(f"{store.path} has no split '{split}'.{suggest(split, texts.SPLITS)}")
    return list(store.documents(split))


def _beginning(document: TextDocument, val: float) -> str:
    words = " ".join(document.text.split())
    lines = textwrap.wrap(words[:_SHOWN] + ("…" if len(words) > _SHOWN else ""), 96)
    head = f"{document.name} ({document.split(val)}, {len(document.text)} characters)"
    return "\n".join([head, *(f"  {line}" for line in lines), ""])
