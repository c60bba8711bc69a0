"""The window itself: opening it on a real display or, for headless runs, on none."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from worldmodel.errors import UserError

BASE = (1000, 800)
"""Usual size of the window, at which one unit of length is one pixel."""

SILENT = ("dummy", "offscreen")
"""SDL's drivers that show nothing."""

REMEDY = (
    "Start it in a desktop session, or without a window: "
    "worldmodel play headless=true script=FILE record=OUT.mp4."
)


def prepare_environment(headless: bool) -> None:
    """Set what SDL reads, before pygame is imported: no sound, no greeting, no window."""
    os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # no sound is used, no card is needed
    if headless:
        os.environ["SDL_VIDEODRIVER"] = "dummy"


def require_display(remedy: str = REMEDY) -> None:
    """Refuse to go on where no window can be seen; `remedy` says what to do about it.

    Raises:
        UserError: a Linux or BSD machine with neither X11 nor Wayland. SDL would otherwise draw
            into nothing, silently.
    """
    if sys.platform in ("win32", "darwin") or os.environ.get("SDL_VIDEODRIVER"):
        return
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UserError(
            f"There is no display: neither DISPLAY nor WAYLAND_DISPLAY is set. {remedy}"
        )


def open_window(
    width: int, height: int, title: str, headless: bool, fullscreen: bool, remedy: str = REMEDY
):
    """Open the window and return its surface.

    Raises:
        UserError: the display cannot be reached.
    """
    import pygame

    from worldmodel.viewer import fonts

    where = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or "of this machine"
    broken = f"Cannot open a window on the display {where}: it does not answer. {remedy}"
    try:
        pygame.display.init()
    except pygame.error as error:
        raise UserError(broken) from error
    asked = os.environ.get("SDL_VIDEODRIVER", "")
    if not headless and not asked and pygame.display.get_driver() in SILENT:
        pygame.display.quit()
        raise UserError(broken)
    pygame.font.init()
    fonts.forget()
    pygame.display.set_caption(title)
    pygame.display.set_icon(_icon())
    size = width, height
    if not headless:
        size = first_size(size, pygame.display.get_desktop_sizes()[0])
    try:
        return set_mode(size, fullscreen)
    except pygame.error as error:
        raise UserError(f"Cannot open a window: {error}. {remedy}") from error


def first_size(wanted: tuple[int, int], desktop: tuple[int, int]) -> tuple[int, int]:
    """Return how large the window opens: the usual size twice as large on a screen of fine pixels.

    Args:
        wanted: width and height that were asked for.
        desktop: those of the screen, of which some is not free.
    """
    free = desktop[0], round(desktop[1] * 0.92)
    if wanted == BASE and all(2 * side <= most for side, most in zip(BASE, free, strict=True)):
        return 2 * BASE[0], 2 * BASE[1]
    return min(wanted[0], free[0]), min(wanted[1], free[1])


class _XError(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("display", ctypes.c_void_p),
        ("resource", ctypes.c_ulong),
        ("serial", ctypes.c_ulong),
        ("code", ctypes.c_ubyte),
    )


_XErrorHandler = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(_XError))
BAD_WINDOW, BAD_DRAWABLE = 3, 9


@contextlib.contextmanager
def outliving_its_window(on_lost: Callable[[], None]) -> Iterator[None]:
    """Call `on_lost` when X11 says that the window is gone, or the terminal is closed.

    A window that another program destroys makes X11 report an error, on which Xlib would end
    the process at once, as a terminal's hangup would, and with it recordings and reports.
    """
    import pygame

    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    heeded = hangup and signal.getsignal(hangup) == signal.SIG_DFL  # `nohup` ignores it
    if hangup and heeded:
        signal.signal(hangup, lambda *_: on_lost())
    x11 = None
    if pygame.display.get_driver() == "x11":
        with contextlib.suppress(OSError):
            x11 = ctypes.CDLL("libX11.so.6")

    def handle(_display: int, error: Any) -> int:
        if error.contents.code in (BAD_WINDOW, BAD_DRAWABLE):
            on_lost()
        return 0

    handler = _XErrorHandler(handle)
    if x11:
        x11.XSetErrorHandler.argtypes = [ctypes.c_void_p]
        x11.XSetErrorHandler(ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        pygame.quit()  # closing a lost window is one more error
        _forget_fonts()
        if x11:
            x11.XSetErrorHandler(None)
        if hangup and heeded:
            signal.signal(hangup, signal.SIG_DFL)


def _forget_fonts() -> None:
    from worldmodel.viewer import fonts

    fonts.forget()


def set_mode(size: tuple[int, int], fullscreen: bool):
    """Make the window `size` pixels, or as large as the screen. Returns its surface."""
    import pygame

    if fullscreen:
        return pygame.display.set_mode((0, 0), pygame.FULLSCREEN)
    return pygame.display.set_mode(size, pygame.RESIZABLE)


def _icon():
    import pygame

    from worldmodel.viewer.theme import AMBER, BACK, TEAL

    icon = pygame.Surface((64, 64), pygame.SRCALPHA)
    pygame.draw.rect(icon, BACK, icon.get_rect(), border_radius=14)
    pygame.draw.circle(icon, TEAL, (32, 32), 20, width=4)
    pygame.draw.circle(icon, AMBER, (32, 32), 7)
    return icon


def clipboard() -> str:
    """Return the text in the clipboard, or nothing."""
    import pygame

    get_text: Any = pygame.scrap.get_text
    with contextlib.suppress(pygame.error):
        return get_text() or ""
    return ""
