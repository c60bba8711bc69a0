"""Folders and objects at URLs that fsspec knows: `memory://`, `http(s)://`, `s3://` and others.

A `Url` is to a store what a `pathlib.Path` is, as far as stores need it. What a network does is
tried again with growing pauses, a bounded number of times; what then still fails, or what no
patience helps, is one sentence. Nothing read is kept here, so nothing wrong can be kept.
"""

import contextlib
import errno
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from worldmodel.errors import UserError, suggest

T = TypeVar("T")

PAUSES_S = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each try after the first."""

TIMEOUT_S = 15.0
"""Seconds without a byte after which a try has failed."""

INDEX = "index.json"
"""Object with the names in a folder, as a JSON list; read where a web server shows no listing."""

_LISTED = "zarr.json"  # every folder that stores list has it, so a listing without it is none
_WEB = ("http", "https")
_S3 = ("s3", "s3a")
_LATER = {408, 425, 429}  # of the HTTP errors below 500, those that pass
_HOPELESS = (
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    PermissionError,
)
_CUT_OFF = {  # what aiohttp and botocore raise for bad connections and half answers
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "ResponseParserError",
}
_NAME = re.compile(r"^[\w.-]+$")  # what else a page links to is no name


class Unreachable(UserError):
    """A server or a network fails; nothing is known about the data.

    Attributes:
        status: of the HTTP answer; None where there was none.
    """

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, order=True)
class Url:
    """A folder or an object at a URL.

    Attributes:
        address: the URL, without a slash at its end.
    """

    address: str

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.address}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.address.rpartition("/")[2]

    @property
    def parent(self) -> "Url":
        """The folder that this lies in."""
        return Url(self.address.rpartition("/")[0])

    @property
    def web(self) -> bool:
        """Whether a web server is asked, which can be read only."""
        return self.address.partition("://")[0] in _WEB

    def absolute(self) -> "Url":
        """Return the same: a URL does not depend on the process's folder."""
        return self

    def resolve(self) -> "Url":
        """Return the same."""
        return self

    def exists(self) -> bool:
        """Return whether a folder with anything in it is there.

        Raises:
            Unreachable: nobody can tell.
        """
        if (self / _LISTED).is_file():
            return True
        try:
            return bool(self.names())
        except FileNotFoundError:
            return False

    def is_file(self) -> bool:
        """Return whether an object is there; meant for small ones, it is read.

        Raises:
            Unreachable: nobody can tell.
        """
        try:
            self.read_bytes()
        except FileNotFoundError:
            return False
        return True

    def names(self) -> list[str]:
        """Return the names of what lies directly below, sorted.

        Raises:
            FileNotFoundError: nothing does, or a web server shows no listing.
            Unreachable: the server fails.
        """
        if self.web:
            return self._names_on_page()

        def listed() -> list[str]:
            files, path = self._open()
            files.invalidate_cache()  # others write as well
            return files.ls(path, detail=False)

        found = (str(path).rstrip("/").rpartition("/")[2] for path in self._patiently(listed))
        return sorted(set(found) - {"", self.name})

    def _names_on_page(self) -> list[str]:
        """Return the names of a web server's listing, or of the index where it shows none."""

        def listed() -> list[str]:
            files, path = self._open()
            files.invalidate_cache()
            return files.ls(f"{path}/", detail=False)

        try:
            links = (str(link).rstrip("/").rpartition("/")[2] for link in self._patiently(listed))
            found = {link for link in links if _NAME.match(link)}
        except FileNotFoundError:
            found = set()
        except Unreachable as error:
            if error.status is None or error.status >= 500:
                raise
            found = set()
        if _LISTED in found:
            return sorted(found)
        try:
            return sorted(str(name) for name in list(json.loads((self / INDEX).read_bytes())))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self} has neither a listing nor the object {INDEX}, which "
                "`worldmodel data index` makes where the store can be written"
            ) from None
        except UserError:
            raise
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self / INDEX} is no list of names ({error}); `worldmodel data index` writes it "
                "anew where the store can be written."
            ) from error

    def read_bytes(self, size: int | None = None) -> bytes:
        """Return an object.

        Args:
            size: bytes that it must have, where that is known.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it has another size, whenever it is read.
            Unreachable: the server fails.
        """

        def read() -> bytes:
            files, path = self._open()
            data = files.cat_file(path)
            if size is not None and len(data) != size:
                raise _Short(f"{self.name} has {len(data)} bytes instead of {size}")
            return data

        return self._patiently(read)

    def read_text(self) -> str:
        """Return an object as UTF-8; raises as `read_bytes`."""
        return self.read_bytes().decode()

    def read_range(self, start: int, length: int) -> bytes:
        """Return `length` bytes of an object from `start` on.

        A server that knows no ranges sends the whole object each time.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is too short, whenever it is read.
            Unreachable: the server fails.
        """

        def read() -> bytes:
            files, path = self._open()
            data = files.cat_file(path, start=start, end=start + length)
            if len(data) > length:
                data = data[start : start + length]
            if len(data) != length:
                raise _Short(f"{self.name} ends before byte {start + length}")
            return data

        return self._patiently(read) if length else b""

    def write_bytes(self, data: bytes, new: bool = False) -> None:
        """Put an object; it is there whole or not at all.

        Args:
            data: its content.
            new: leave what is already there as it is.

        Raises:
            FileExistsError: `new`, and it is there.
            UserError: this kind of URL cannot be written.
            Unreachable: the server fails or refuses.
        """
        if self.web:
            raise UserError(f"{self} cannot be written: web servers can only be read.")

        def write() -> None:
            files, path = self._open()
            if not new:
                files.pipe_file(path, data)
                return
            try:
                files.pipe_file(path, data, mode="create")
            except OSError as error:
                if error.errno != errno.ENOSYS and _status(error) != HTTPStatus.NOT_IMPLEMENTED:
                    raise
                files.pipe_file(path, data)  # a server without conditional writes

        self._patiently(write, "written")

    def unlink(self) -> None:
        """Delete an object; nothing happens where there is none.

        Raises:
            Unreachable: the server fails or refuses.
        """

        def delete() -> None:
            files, path = self._open()
            files.rm_file(path)

        with contextlib.suppress(FileNotFoundError):
            self._patiently(delete, "deleted")

    def remove(self) -> None:
        """Delete a folder with all that is in it; nothing happens where there is none.

        Raises:
            Unreachable: the server fails or refuses.
        """

        def delete() -> None:
            files, path = self._open()
            files.invalidate_cache()
            files.rm(path, recursive=True)

        with contextlib.suppress(FileNotFoundError):
            self._patiently(delete, "deleted")

    def modified_s(self) -> float:
        """Return when the object was written, in seconds since 1970.

        Raises:
            FileNotFoundError: it is not there.
            Unreachable: the server fails, or does not tell.
        """

        def modified() -> float:
            files, path = self._open()
            files.invalidate_cache()
            return files.modified(path).timestamp()

        return self._patiently(modified)

    def _open(self) -> tuple[Any, str]:
        """Return fsspec's file system, one for all URLs of a server, and its name for this."""
        from fsspec.core import url_to_fs

        protocol = self.address.partition("://")[0]
        try:
            files, path = url_to_fs(self.address, **_options(protocol))
        except ImportError as error:
            ours = protocol in (*_WEB, *_S3)
            how = "pip install 'worldmodel[remote]' brings them" if ours else "install that first"
            raise UserError(f"{self.address} needs more packages ({error}); {how}.") from error
        if hasattr(files, "retries"):
            files.retries = 1  # s3fs: its tries within ours would take minutes
        return files, path

    def _patiently(self, act: Callable[[], T], done: str = "read") -> T:
        """Return what `act` gives, tried again while that may help."""
        begin_s = time.monotonic()
        for number, pause_s in enumerate((*PAUSES_S, None), 1):
            try:
                return act()
            except (FileNotFoundError, FileExistsError, UserError):
                raise
            except _Short as error:
                if pause_s is None:
                    raise ValueError(str(error)) from error
            except Exception as error:
                status = _status(error)
                if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    raise ValueError(f"{self.name} is shorter than it should be") from error
                if pause_s is None or not _may_pass(error, status):
                    took = f"{number} tries in {time.monotonic() - begin_s:.0f} s"
                    raise Unreachable(
                        f"{self} cannot be {done}: {_cause(error, status)}"
                        f"{f' ({took})' if number > 1 else ''}.",
                        status,
                    ) from error
            time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")


class _Short(Exception):
    """Fewer or more bytes came than there should be; another try may bring all."""


def check_url(address: str) -> Url:
    """Return the URL, if it is one that can be used.

    Raises:
        UserError: an unknown protocol, or a part that a store's URL cannot have.
    """
    from fsspec import available_protocols

    protocol, _, rest = address.partition("://")
    if protocol not in (known := available_protocols()):
        raise UserError(f"{address} is of no protocol that fsspec knows.{suggest(protocol, known)}")
    if protocol in _WEB and ("?" in rest or "#" in rest):
        raise UserError(
            f"{address} has a query; a store's URL is that of its folder, to which /zarr.json and "
            "the like are added."
        )
    if ":" in rest.partition("/")[0].rpartition("@")[0]:
        raise UserError(
            f"{protocol}://...: a password in a URL would be kept in the store's provenance; "
            "put it into the environment or fsspec's configuration."
        )
    return Url(address.rstrip("/"))


def _options(protocol: str) -> dict[str, Any]:
    """Return what fsspec is told; what the user's configuration of it says comes first."""
    from fsspec.config import conf

    ours: dict[str, Any] = {}
    if protocol in _WEB:
        import aiohttp

        timeout = aiohttp.ClientTimeout(sock_connect=TIMEOUT_S, sock_read=TIMEOUT_S)
        ours = {"client_kwargs": {"timeout": timeout}}
    elif protocol in _S3:
        once = {"total_max_attempts": 1, "mode": "standard"}  # else its tries multiply ours
        # max_concurrency=1 spares a request for the size before that for the object.
        ours = {
            "config_kwargs": {"retries": once, "read_timeout": TIMEOUT_S},
            "max_concurrency": 1,
        }
    return {key: value for key, value in ours.items() if key not in conf.get(protocol, {})}


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error of aiohttp, or of botocore below one of s3fs."""
    if isinstance(status := getattr(error, "status", None), int):
        return status
    for one in (error, error.__cause__):
        answer = getattr(one, "response", None)
        if isinstance(answer, dict):
            return answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return None


def _may_pass(error: BaseException, status: int | None) -> bool:
    """Return whether the same may succeed later."""
    if status is not None:
        return status >= 500 or status in _LATER
    if isinstance(error, OSError):  # TimeoutError and aiohttp's connection errors among them
        return not isinstance(error, _HOPELESS)
    return any(kind.__name__ in _CUT_OFF for kind in type(error).__mro__)


def _cause(error: BaseException, status: int | None) -> str:
    text = (str(error).splitlines() or [""])[0].rstrip(".")
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return f"no answer within {TIMEOUT_S:g} s"
    if status is not None:
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
        return f"HTTP {status} {phrase}".strip()
    return f"{text} ({type(error).__name__})" if text else type(error).__name__
