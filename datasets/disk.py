"""Where stores keep their files: on this machine's disks, or at a URL (`url`).

What all stores here share: a *member* (an episode, a shard of text, an episode's latents) is a
folder that is there whole or not at all, whatever happens to its writer; any number of processes
write and read at once without locks. The record of a member is its own `zarr.json`.

On a disk a member is built in a folder `.tmp-<name>.<host>.<pid>.<time>` beside its place,
synced, and renamed. An object store knows no renaming of folders, but puts single objects whole.
There a member's record is put last, so that it is committed once its record is there. Before the
first object of a member an empty object `writing-<name>.<host>.<pid>.<time>` is put beside it, and
deleted at the end: a reader lists the folder once, and looks for the records of only those members
that somebody writes, or did when he was killed. Its name sorts after those of members, so that a
listing that comes in pages cannot show the member and miss the mark.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import zarr

from worldmodel.datasets.schema import TEMPORARY, crc32
from worldmodel.datasets.url import INDEX, Unreachable, Url, check_url
from worldmodel.errors import UserError

Place = Path | Url
"""Of a folder or a file."""

RECORD = "zarr.json"
WRITING = "writing-"
"""How the mark of a member begins that somebody writes at a URL."""

_SYNCS = 16  # files and folders of a member that are synced at once
_ABANDONED_S = 3600.0  # age at which another machine's unfinished member counts as abandoned
_MAKER = re.compile(r"\.(?P<host>[^.]+)\.(?P<pid>\d+)\.\d+$")  # see `_maker`
_LOCAL = ("file://", "local://")


def place(path: str | Path | Url) -> Place:
    """Return where a store lies that a user named: a path, or a URL.

    Raises:
        UserError: a URL that cannot be used.
    """
    if not isinstance(path, str):
        return path
    for protocol in _LOCAL:
        if path.startswith(protocol):
            return Path(path.removeprefix(protocol))
    return check_url(path) if "://" in path else Path(path)


def writable(path: str | Place) -> Place:
    """Return where a store lies that is to be written; raises as `place`, and for web servers."""
    found = place(path)
    if isinstance(found, Url) and found.web:
        raise UserError(
            f"{found} cannot be written: a web server can only be read. Write to a folder, or to "
            "the URL of an object store such as s3://bucket/x.zarr."
        )
    return found


def local(path: str, setting: str) -> Path:
    """Return a path of this machine.

    Raises:
        UserError: a URL, which `setting` cannot be.
    """
    found = place(path)
    if isinstance(found, Url):
        raise UserError(f"{setting}={path}: this has to be a path of this machine, not a URL.")
    return found


def names(folder: Place) -> list[str]:
    """Return the names of what is committed in a folder of members, sorted.

    Raises:
        OSError: no such folder.
        Unreachable: a server that fails.
    """
    found = folder.names() if isinstance(folder, Url) else sorted(os.listdir(folder))
    marked = {_member(name) for name in found if name.startswith(WRITING)}
    hidden = (TEMPORARY, WRITING)
    return [
        name
        for name in found
        if name not in (RECORD, INDEX)
        and not name.startswith(hidden)
        and (name not in marked or (folder / name / RECORD).is_file())
    ]


def members(store: Place, folder: str) -> list[str]:
    """Return the names of what is committed in a folder of a store, sorted.

    Raises:
        UserError: the folder is gone, or a URL does not tell what is in it.
    """
    try:
        return names(store / folder)
    except OSError as error:
        if isinstance(store, Url):
            raise UserError(f"What {store} holds cannot be known: {error}.") from error
        raise UserError(f"{store} has lost its folder '{folder}': {error}.") from error


def is_committed(member: Place) -> bool:
    """Return whether a member is there: on a disk its folder, at a URL its record."""
    return (member / RECORD).is_file() if isinstance(member, Url) else member.is_dir()


def is_free(path: Place, ours: str) -> bool:
    """Return whether a store can be made at `path`: nothing is there, or a folder without files.

    At a URL the part `ours` of a store whose maker was killed is nothing either.
    """
    if isinstance(path, Url):
        return not path.exists() or not set(path.names()) - {ours}
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


@contextlib.contextmanager
def committing(member: Place) -> Iterator[Path]:
    """Give the path of a folder to build a member in; it appears at its place after the block.

    The folder is this machine's and is not there yet; its `zarr.json` becomes the record. If the
    block raises, nothing appears. A member that is already there has the same content and stays.

    Raises:
        OSError: a disk that is full or may not be written.
        Unreachable: a server that fails or refuses.
    """
    if isinstance(member, Url):
        with _scratch(member.name) as folder:
            yield folder
            _put_member(folder, member)
        return
    temporary = member.with_name(f"{TEMPORARY}{member.name}.{_maker()}")
    try:
        yield temporary
        _sync_tree(temporary)
        _rename(temporary, member)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def create(path: Place, members: str, attributes: Mapping[str, Any]) -> None:
    """Make an empty store: a group with these attributes and a group `members` in it.

    Where another process is faster, its store is taken.

    Raises:
        OSError: a disk that is full or may not be written.
        Unreachable: a server that fails or refuses.
    """
    with _scratch(path.name) if isinstance(path, Url) else committing(path) as folder:
        zarr.create_group(folder, zarr_format=3, attributes=dict(attributes))
        zarr.create_group(folder / members, zarr_format=3)
        if isinstance(path, Url):
            _put(folder, path)


def create_group(folder: Place, attributes: Mapping[str, Any] | None = None) -> None:
    """Make a Zarr group in a store, where it is missing.

    Raises:
        OSError: a disk that is full or may not be written.
        Unreachable: a server that fails or refuses.
    """
    if (folder / RECORD).is_file():
        return
    group = {"attributes": attributes or {}, "zarr_format": 3, "node_type": "group"}
    write(folder / RECORD, json.dumps(group, indent=2).encode())


def write(file: Place, data: bytes) -> None:
    """Write a file; readers see the old one or the new one, whole.

    Raises:
        OSError: a disk that is full or may not be written.
        Unreachable: a server that fails or refuses.
    """
    if isinstance(file, Url):
        file.write_bytes(data)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{_maker()}")
    try:
        temporary.write_bytes(data)
        _sync(temporary)
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_index(folder: Place) -> int:
    """Write the names of a folder's members into its index; return how many there are.

    Raises:
        OSError: no such folder, or a disk that is full or may not be written.
        Unreachable: a server that fails or refuses.
    """
    found = names(folder)
    write(folder / INDEX, json.dumps(found, indent=0).encode())
    return len(found)


def file_facts(data: bytes) -> dict[str, Any]:
    """Return what a record says about a file with this content."""
    return {"bytes": len(data), "crc32": crc32(data)}


def facts_of_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the facts of each file below a folder of this machine, by its path."""
    return {name: file_facts((folder / name).read_bytes()) for name in _files(folder)}


def check_size(file: Place, name: str, expected: int) -> None:
    """Check that a file on a disk is there and as long as it should be; `name` is what to call it.

    At a URL nothing is asked: what is read there is measured then.

    Raises:
        ValueError: it is missing, or has another size.
    """
    if isinstance(file, Url):
        return
    try:
        size = file.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{name} is missing") from None
    if size != expected:
        raise ValueError(f"{name} has {size} bytes instead of {expected}")


def verified(folder: Place, name: str, facts: Mapping[str, Any]) -> bytes:
    """Return a file below `folder` of which a record says these facts.

    Raises:
        ValueError: it is missing, or not what it should be.
        Unreachable: a server that fails.
    """
    file = folder / name
    check_size(file, name, facts["bytes"])
    try:
        data = file.read_bytes(facts["bytes"]) if isinstance(file, Url) else file.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{name} is missing") from None
    if file_facts(data) != facts:
        raise ValueError(f"the checksum of {name} does not match")
    return data


@contextlib.contextmanager
def on_disk(folder: Place, files: Mapping[str, Mapping[str, Any]]) -> Iterator[Path]:
    """Give a folder of this machine with those files: itself, or a copy of what is at a URL.

    Args:
        folder: where they are.
        files: their facts, by their path below it.

    Raises:
        ValueError: a file at a URL that is missing or not what it should be.
        Unreachable: a server that fails.
    """
    if not isinstance(folder, Url):
        yield folder
        return
    with _scratch(folder.name) as copy:
        for name, facts in files.items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(verified(folder, name, facts))
        yield copy


def leftovers(folder: Place) -> list[Place]:
    """Return what killed writers left in a folder of members: folders, or marks at a URL."""
    if isinstance(folder, Url):
        if folder.web:  # which nobody writes through
            return []
        marks = [folder / name for name in folder.names() if name.startswith(WRITING)]
        return [mark for mark in marks if _is_abandoned(mark)]
    found = [folder / name for name in sorted(os.listdir(folder)) if name.startswith(TEMPORARY)]
    return [one for one in found if _is_abandoned(one)]


def remove_leftover(left: Place) -> None:
    """Delete what a killed writer left.

    Raises:
        Unreachable: a server that fails or refuses.
    """
    if not isinstance(left, Url):
        shutil.rmtree(left, ignore_errors=True)
        return
    member = left.parent / _member(left.name)
    others = {name for name in left.parent.names() if name.startswith(f"{WRITING}{member.name}.")}
    if others == {left.name} and not is_committed(member):
        member.remove()
    left.unlink()


def _put_member(folder: Path, member: Url) -> None:
    """Put what lies in a local folder as a member."""
    if is_committed(member):
        return
    mark = member.parent / f"{WRITING}{member.name}.{_maker()}"
    mark.write_bytes(b"")
    _put(folder, member)
    with contextlib.suppress(Unreachable):  # a mark that stays costs readers a look
        mark.unlink()


def _put(folder: Path, to: Url) -> None:
    """Put the files of a local folder as objects below `to`, its record last."""
    for name in _files(folder):
        if name != RECORD:
            (to / name).write_bytes((folder / name).read_bytes())
    with contextlib.suppress(FileExistsError):  # another process was faster
        (to / RECORD).write_bytes((folder / RECORD).read_bytes(), new=True)


@contextlib.contextmanager
def _scratch(name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="worldmodel_store_") as folder:
        yield Path(folder) / name


def _is_abandoned(left: Place) -> bool:
    """Return whether the maker of a temporary folder or mark is gone; unclear ones count too."""
    maker = _MAKER.search(left.name)
    if maker and maker["host"] == host():
        return not _alive(int(maker["pid"]))
    try:
        return not maker or time.time() - _modified_s(left) > _ABANDONED_S
    except FileNotFoundError:
        return False


def _modified_s(left: Place) -> float:
    return left.modified_s() if isinstance(left, Url) else left.stat().st_mtime


def _member(mark: str) -> str:
    """Return the name of the member that a mark is about."""
    return mark.removeprefix(WRITING).split(".")[0]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # one that was killed is there until its parent asks, in containers for a while
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state not in "ZX"


def host() -> str:
    """Return this machine's name, as it stands in the names of what writers leave."""
    return socket.gethostname().replace(".", "_") or "host"


def _maker() -> str:
    return f"{host()}.{os.getpid()}.{time.monotonic_ns()}"


def _files(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _sync_tree(folder: Path) -> None:
    # All at once: a file system writes together what is asked for together, where one after the
    # other each would wait for the disk.
    with ThreadPoolExecutor(_SYNCS) as pool:
        list(pool.map(_sync, [*folder.rglob("*"), folder]))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename(temporary: Path, final: Path) -> None:
    """Rename a finished folder into place; one that is already there has the same content."""
    try:
        os.rename(temporary, final)
    except OSError:
        if not (final / RECORD).is_file():
            raise
        shutil.rmtree(temporary)
    _sync(final.parent)
