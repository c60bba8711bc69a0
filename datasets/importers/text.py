"""Documents of plain text: a folder of text files, or what ships with CPython."""

import ast
import inspect
import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from worldmodel.datasets.text import TextDocument
from worldmodel.errors import UserError

SUFFIXES = (".txt", ".md", ".rst")
PYTHON = "python"
PYTHON_LICENCE = "PSF-2.0"

_SHORTEST = 40  # characters; shorter docstrings say nothing in prose
_NOT_LIBRARY = {"test", "tests", "idlelib", "lib2to3", "pydoc_data", "turtledemo", "site-packages"}
_NOT_LIBRARY |= {"dist-packages", "__pycache__", "ensurepip", "__phello__"}


def folder_documents(source: str | Path, report: Callable[[str], None]) -> Iterator[TextDocument]:
    """Yield the text files below a folder, or one text file, in the order of their names.

    They are read as UTF-8; line ends become those of Unix. Hidden files and folders are passed
    over.

    Args:
        source: the folder or file.
        report: is told about each file that cannot be read, which is left out.

    Raises:
        UserError: nothing there, no text files, or none that can be read.
    """
    source = Path(source)
    files = _text_files(source)
    readable = 0
    for file in files:
        name = file.name if file == source else file.relative_to(source).as_posix()
        try:
            text = file.read_bytes().decode("utf-8-sig")
            if "\0" in text:
                raise ValueError("it is binary")
        except UnicodeDecodeError as error:
            report(f"{file} is left out: byte {error.start} is not UTF-8.")
            continue
        except (OSError, ValueError) as error:
            report(f"{file} is left out: {getattr(error, 'strerror', None) or error}.")
            continue
        readable += 1
        yield TextDocument(name, text.replace("\r\n", "\n").replace("\r", "\n"))
    if not readable:
        raise UserError(
            f"None of the {len(files)} text files of source={source} can be read as UTF-8."
        )


def _text_files(source: Path) -> list[Path]:
    kinds = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
    if not source.exists():
        raise UserError(f"source={source} does not exist; it is a folder of {kinds} files.")
    if source.is_file():
        if source.suffix.lower() not in SUFFIXES:
            raise UserError(f"source={source} is no text file: its name should end in {kinds}.")
        return [source]
    found = []
    for folder, below, names in os.walk(source):
        below[:] = sorted(name for name in below if not name.startswith("."))
        named = [n for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
        found += [Path(folder, name) for name in named]
    if not found:
        raise UserError(f"source={source} has no text files: none ends in {kinds}.")
    return sorted(found)


def python_documents(library: Path | None = None) -> Iterator[TextDocument]:
    """Yield the prose that ships with CPython: pydoc's topics and the library's docstrings.

    One document per topic, and one per module of the standard library whose source is there. The
    modules are parsed, not imported. `library` is the folder of the modules, by default that of
    the running Python.
    """
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield TextDocument(f"topic/{name}", text)
    library = library or Path(sysconfig.get_paths()["stdlib"])
    for folder, below, names in os.walk(library):
        below[:] = sorted(n for n in below if n not in _NOT_LIBRARY and not n.startswith("config-"))
        for name in sorted(n for n in names if n.endswith(".py")):
            file = Path(folder, name)
            if prose := _docstrings(file):
                yield TextDocument(f"lib/{file.relative_to(library).as_posix()}", prose)


def _docstrings(file: Path) -> str:
    """Return the docstrings of a module, of its classes and functions, in order."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ""  # some modules of the library are in no encoding on purpose
    places = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        inspect.cleandoc(text)
        for node in ast.walk(tree)
        if isinstance(node, places) and (text := ast.get_docstring(node, clean=False))
    ]
    prose = "\n\n".join(text for text in found if len(text) >= _SHORTEST)
    return prose.encode("utf-8", "ignore").decode()  # lone surrogates are no text
