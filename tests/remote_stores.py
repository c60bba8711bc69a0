"""What the tests of stores at URLs share: episodes, stores at URLs, servers good and bad.

Read with `runpy` (tests are no package); fixtures take effect where a test file names them.
"""

import contextlib
import functools
import http.client
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.datasets import url
from worldmodel.datasets.clips import ClipIndex, read_clips
from worldmodel.datasets.store import EpisodeStore, EpisodeWriter
from worldmodel.world import Annotation, Episode, WorldSpec

FOREVER = float("inf")
SPEC = WorldSpec("toy", ActionTable((ActionRow("forward", "w", "walk", dx=0.5),)), 16, 16)
STEPS = 40


def make_episode(seed: int, split: str = "train") -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        frames=rng.integers(0, 256, (STEPS + 1, 16, 16, 3), np.uint8),
        actions=rng.normal(size=(STEPS, 3)).astype(np.float32),
        keys=rng.integers(0, 2, STEPS).astype(np.uint16),
        facts={"pose": rng.normal(size=(STEPS + 1, 3)).astype(np.float32)},
        annotations=(Annotation("caption", 0, 3, f"picture {seed}"),),
        info={"world": "toy", "seed": seed, "split": split, "policy": "mix"},
    )


def fill(path: str | Path, seeds: range = range(3)) -> list[str]:
    writer = EpisodeWriter(path, SPEC, licence="CC0-1.0")
    return [writer.write(make_episode(seed, "val" if seed == 2 else "train")) for seed in seeds]


def assert_same_stores(path: str, local: Path) -> None:
    """Everything that can be read at a URL is what the store on disk holds."""
    there, here = EpisodeStore(path), EpisodeStore(local)
    assert str(there.path) == path
    assert there.ids == here.ids
    assert there.spec == here.spec
    assert there.select("val") == here.select("val")
    for name in here.ids:
        np.testing.assert_array_equal(there.check(name).frames, here.read(name).frames)
        assert there.annotations(name) == here.annotations(name)
        assert there.info(name) == here.info(name)
        for key, values in here.arrays(name).items():
            np.testing.assert_array_equal(there.arrays(name)[key], values)
        for start, stop in [(0, 1), (7, 9), (5, 21), (STEPS, STEPS + 1)]:
            window = there.frames(name, start, stop)
            np.testing.assert_array_equal(window, here.frames(name, start, stop))
    clips = list(ClipIndex(there, 16).order(0))[:12]
    np.testing.assert_array_equal(read_clips(there, clips, 4), read_clips(here, clips, 1))


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tries as always, with short pauses."""
    monkeypatch.setattr(url, "PAUSES_S", (0.01, 0.02, 0.03, 0.04))
    monkeypatch.setattr(url, "TIMEOUT_S", 1.0)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    fill(tmp_path / "www" / "x.zarr")
    return tmp_path / "www" / "x.zarr"


@pytest.fixture
def memory() -> Iterator[str]:
    name = f"memory://test-{time.monotonic_ns()}"
    yield f"{name}/x.zarr"
    with contextlib.suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm(name, recursive=True)


# --- web servers ---------------------------------------------------------------------------------


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, with ranges; the server says what it lacks and what goes wrong."""

    protocol_version = "HTTP/1.1"
    server: "Web"

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        trouble = self.server.trouble(self.path)
        file = Path(self.translate_path(self.path))
        if trouble and trouble.isdigit():
            return self.send_error(int(trouble))
        if trouble == "silence":
            time.sleep(3)
            self.close_connection = True
            return None
        if not file.is_file():
            return super().do_GET() if self.server.lists else self.send_error(404)
        return self.answer(file.read_bytes(), trouble)

    def answer(self, body: bytes, trouble: str | None) -> None:
        total, code = len(body), 200
        if trouble == "short":
            body = body[: total // 2]
        if trouble == "changed":
            body = bytes(byte ^ 1 for byte in body)
        asked = re.match(r"bytes=(\d+)-(\d+)$", self.headers.get("Range", ""))
        if asked and self.server.ranges:
            first, last = map(int, asked.groups())
            if first >= len(body):
                return self.send_error(416)
            code, body = 206, body[first : last + 1]
        self.send_response(code)
        if code == 206 and asked:
            self.send_header("Content-Range", f"bytes {asked[1]}-{asked[2]}/{total}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if trouble == "drop" else body)
        self.server.sent += len(body)
        if trouble == "drop":
            self.close_connection = True
        return None

    def log_message(self, *_: object) -> None:
        pass


class Web(ThreadingHTTPServer):
    """A web server in a thread.

    Attributes:
        lists, ranges: whether it shows listings and knows ranges of bytes.
        bad: what goes wrong with an object whose path has a word in it, and how often.
        asked, sent: paths it was asked for, and bytes of files it has sent.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.lists = self.ranges = True
        self.bad: dict[str, tuple[str, float]] = {}
        self.asked: list[str] = []
        self.sent = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def store(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/x.zarr"

    def trouble(self, path: str) -> str | None:
        for word, (kind, left) in self.bad.items():
            if word in path and left > 0:
                self.bad[word] = kind, left - 1
                return kind
        return None


@pytest.fixture
def web(local: Path) -> Iterator[Web]:
    server = Web(local.parent)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """An S3 server of this process, and the environment that leads to it."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield address
    server.stop()


@pytest.fixture
def s3(s3_server: str) -> str:
    """A store's URL in a bucket of its own."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # of another server's environment
    bucket = f"bucket-{time.monotonic_ns()}"
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}/deep/x.zarr"


@pytest.fixture(params=["memory", "s3"])
def remote(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)


class Proxy(BaseHTTPRequestHandler):
    """Hands requests on to the S3 server, unless the server's `bad` says what goes wrong."""

    protocol_version = "HTTP/1.1"
    server: "Unreliable"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        trouble = self.server.trouble(f"{self.command} {self.path}")
        if trouble and trouble.isdigit():
            return self.reply(int(trouble), [], b"")
        request = http.client.HTTPConnection(self.server.behind, timeout=20)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        request.request(self.command, self.path, body, headers)
        answer = request.getresponse()
        found = answer.read()
        kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in _OF_THE_LINE]
        return self.reply(answer.status, kept, found, cut=trouble == "drop")

    def reply(self, code: int, headers: list, body: bytes, cut: bool = False) -> None:
        self.send_response(code)
        head = self.command == "HEAD"
        for key, value in headers:
            if head or key.lower() != "content-length":
                self.send_header(key, value)
        if not head:
            self.send_header("Content-Length", str(len(body) + cut))
        self.end_headers()
        if not head:
            self.wfile.write(body)
        self.close_connection = cut

    def log_message(self, *_: object) -> None:
        pass

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer


_OF_THE_LINE = ("connection", "transfer-encoding", "server", "date")


class Unreliable(ThreadingHTTPServer):
    """A proxy in a thread; `bad` as in `Web`, by words of method and path."""

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), Proxy)
        self.behind = behind.removeprefix("http://")
        self.bad: dict[str, tuple[str, float]] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    trouble = Web.trouble


@pytest.fixture
def unreliable(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Unreliable]:
    server = Unreliable(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()
