"""The futures of a fork side by side: which ones, where they stand, how they are drawn."""

from pygame import Rect, Surface, draw

from worldmodel.viewer.commands import Branch
from worldmodel.viewer.fonts import fit, measure, printable, put
from worldmodel.viewer.keys import Keymap
from worldmodel.viewer.layout import Layout, grid
from worldmodel.viewer.session import Future
from worldmodel.viewer.theme import AMBER, EDGE, FAINT, MUTED, SURFACE, TEAL, TEXT
from worldmodel.viewer.widgets import frame_surface, keycap


def first_branches(keymap: Keymap, instruction: str) -> tuple[Branch, ...]:
    """Return the branches that a fork opens with: ahead, left, right, and the instruction."""
    keys = [keymap.ways[arrow] for arrow in ("up", "left", "right") if arrow in keymap.ways]
    if len(keys) < 2:
        keys = list(dict.fromkeys(keymap.actions.values()))[:3]
    branches = tuple(Branch((key,)) for key in dict.fromkeys(keys))
    said = (Branch(say=instruction),) if instruction else ()
    return (*branches, *said)


def toggled(branches: tuple[Branch, ...], branch: Branch) -> tuple[Branch, ...]:
    """Return the branches with one more, or without it where it was among them."""
    if branch in branches:
        return tuple(other for other in branches if other != branch)
    return (*branches, branch)


def tiles(layout: Layout, count: int, aspect: float) -> list[Rect]:
    """Return the places of the frames of `count` branches; each has its caption below."""
    return grid(layout.area, count, aspect, layout.px(16), layout.px(60))


def branch_at(
    layout: Layout, futures: tuple[Future, ...], at: tuple[int, int], aspect: float
) -> int | None:
    """Return the index of the branch at a point of the window."""
    places = tiles(layout, len(futures), aspect)
    return next((i for i, place in enumerate(places) if place.collidepoint(at)), None)


def draw_fork(
    surface: Surface, layout: Layout, futures: tuple[Future, ...], aspect: float, smooth: bool
) -> None:
    """Draw the futures with their number, what drives them, and the text sent."""
    places = tiles(layout, len(futures), aspect)
    for number, (place, future) in enumerate(zip(places, futures, strict=True), start=1):
        colour = TEAL if future.branch.say else AMBER
        draw.rect(surface, SURFACE, place.inflate(layout.px(4), layout.px(4)))
        surface.blit(frame_surface(future.now.frame, place.size, smooth), place)
        mark = Rect(place.x, place.bottom, place.width, layout.px(3))
        draw.rect(surface, colour if future.steps else EDGE, mark)
        y = place.bottom + layout.px(22)
        cap = keycap(surface, layout, str(number), (place.x, y), lit=False)
        x, size = cap.right + layout.px(10), layout.px(17)
        steps = f"+{future.steps}"
        room = place.right - x - measure(steps, layout.px(13)) - layout.px(8)
        if room < layout.px(16):  # what drives it counts more than how long
            steps, room = "", place.right - x
        label = future.branch.say or f"hold {future.branch.label.upper()}"
        if not future.branch.say and measure(label, size) > room:
            label = future.branch.label.upper()
        put(surface, fit(printable(label), size, room), (x, y), size, colour)
        put(surface, steps, (place.right, y), layout.px(13), FAINT, align="right")
        sent = printable(future.now.text) if future.steps else "begins with the next step"
        size = layout.px(13)
        at = (place.x, y + layout.px(24))
        put(surface, fit(sent, size, place.width), at, size, MUTED if future.steps else FAINT)


def draw_summary(surface: Surface, layout: Layout, futures: tuple[Future, ...]) -> None:
    """Draw the line under the futures."""
    place, size = layout.sent, layout.px(15)
    label = put(surface, "FORK", (place.x, place.centery), layout.px(12), FAINT, bold=True)
    number = futures[0].now.number - futures[0].steps
    taken = f"1-{len(futures)} or a click takes one"
    put(surface, taken, (place.right, place.centery), size, MUTED, align="right")
    x = label.right + layout.px(12)
    room = place.right - x - measure(taken, size) - layout.px(16)
    text = f"{len(futures)} futures of step {number}"
    put(surface, fit(text, size, room), (x, place.centery), size, TEXT)
