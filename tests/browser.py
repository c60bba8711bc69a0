"""A headless Chromium for tests, by its DevTools protocol. Read with `runpy`: no package.

`driven(folder)` is a context manager that gives a `Browser`; `EXECUTABLE` is None where there is
no Chromium.
"""

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser")

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
    *("--remote-debugging-port=0", "--hide-scrollbars", "--mute-audio"),
)
# What a key is to DevTools: its code, its number, and the text that it types.
KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "Backspace": ("Backspace", 8, ""),
    "ArrowLeft": ("ArrowLeft", 37, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    " ": ("Space", 32, " "),
}


class Browser:
    """One page, and somebody at its keyboard.

    Attributes:
        errors: what the page's scripts raised and nobody caught.
    """

    def __init__(self, devtools: ClientConnection) -> None:
        self._devtools, self._count = devtools, 0
        self.errors: list[str] = []
        self.call("Page.enable")
        self.call("Runtime.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        self._devtools.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while (answer := json.loads(self._devtools.recv(60))).get("id") != self._count:
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(answer["params"]["exceptionDetails"]))
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        there = json.dumps(url.split("#")[0])
        self.until(f"document.readyState === 'complete' && location.href.startsWith({there})")

    def js(self, expression: str) -> Any:
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str, timeout_s: float = 60.0) -> Any:
        end = time.monotonic() + timeout_s
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"waited in vain for {expression}"
            time.sleep(0.05)
        return value

    def text(self, name: str) -> str:
        return self.js(f"document.getElementById('{name}').textContent")

    def down(self, key: str) -> None:
        code, number, text = _key(key)
        event = {"key": key, "code": code, "windowsVirtualKeyCode": number, "text": text}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event)

    def up(self, key: str) -> None:
        code, number, _ = _key(key)
        event = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.down(key)
            self.up(key)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def size(self, width: int, height: int, touch: bool = False) -> None:
        shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        self.call("Emulation.setDeviceMetricsOverride", **shape)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)

    def touch(self, selector: str) -> None:
        """Put a finger on an element; `lift` takes it away."""
        box = self.js(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView(); const"
            " r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        points = [{"x": box[0], "y": box[1]}]
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=points)

    def lift(self) -> None:
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def _key(key: str) -> tuple[str, int, str]:
    return KEYS[key] if key in KEYS else (f"Key{key.upper()}", ord(key.upper()), key)


@contextlib.contextmanager
def driven(folder: Path) -> Iterator[Browser]:
    """Start a Chromium with a profile of its own in `folder`."""
    assert EXECUTABLE
    with (folder / "chromium.log").open("w") as log:
        process = subprocess.Popen(
            [EXECUTABLE, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
            stdout=log,
            stderr=log,
        )
    try:
        told, end = folder / "profile" / "DevToolsActivePort", time.monotonic() + 60
        while not (told.exists() and told.read_text().count("\n")):
            assert process.poll() is None, (folder / "chromium.log").read_text()
            assert time.monotonic() < end, "Chromium does not start"
            time.sleep(0.05)
        base = f"http://127.0.0.1:{told.read_text().splitlines()[0]}"
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        pages = json.loads(direct.open(f"{base}/json/list", timeout=30).read())
        url = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        with connect(url, max_size=None, proxy=None, compression=None) as devtools:
            yield Browser(devtools)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
