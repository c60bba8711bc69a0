"""Draws a `ViewState` on a surface. Pure: no events, no model, no state of its own."""

from collections.abc import Sequence

import pygame
from pygame import Rect

from worldmodel.errors import UserError
from worldmodel.viewer import besideview, forkview, mapview, panel
from worldmodel.viewer.engine import Snapshot
from worldmodel.viewer.fonts import fit, measure, printable, put, wrap
from worldmodel.viewer.helpview import draw_help
from worldmodel.viewer.layout import Layout, make_layout
from worldmodel.viewer.session import Moment
from worldmodel.viewer.theme import AMBER, BACK, EDGE, FAINT, MUTED, RED, SURFACE, TEAL, TEXT
from worldmodel.viewer.view import ViewState
from worldmodel.viewer.widgets import frame_surface, shade, typing

NOTICE_S = 6.0
SLOW_S = 1.5

ADVICE = (
    "It has no memory left: open fewer futures at once, close other programs, or set device=cpu."
)
"""What can be done where memory was too small."""


def layout_of(size: tuple[int, int], view: ViewState) -> Layout:
    """Return where things stand for this view."""
    info = view.snapshot.info
    height, width = (info.spec.height, info.spec.width) if info else (64, 64)
    return make_layout(size, width / height, view.smooth, height)


def aspect_of(snapshot: Snapshot) -> float:
    """Return the width of a frame divided by its height."""
    return snapshot.info.spec.width / snapshot.info.spec.height if snapshot.info else 1.0


def draw(surface: pygame.Surface, view: ViewState) -> Layout:
    """Draw the whole window. Returns the layout, for finding what was clicked."""
    layout = layout_of(surface.get_size(), view)
    snapshot = view.snapshot
    aspect = aspect_of(snapshot)
    if view.charted is not None and snapshot.chart:
        chosen = min(view.charted, len(snapshot.chart) - 1)
        mapview.draw_map(
            surface, layout, snapshot.chart, chosen, aspect, view.smooth, view.box, view.now_s
        )
        _notice(surface, layout, view)
        return layout
    surface.fill(BACK)
    if snapshot.futures and snapshot.status != "failed":
        forkview.draw_fork(surface, layout, snapshot.futures, aspect, view.smooth)
        _badges(surface, layout, view)
    elif snapshot.now and snapshot.now.sight and snapshot.status != "failed":
        besideview.draw_beside(surface, layout, snapshot.now, aspect, view.smooth, view.apart)
        _badges(surface, layout, view)
    else:
        _picture(surface, layout, view)
    if layout.panel.width:
        panel.draw_panel(surface, layout, view)
    if view.box.open or layout.box != layout.sent:  # a small window has one line for both
        _box(surface, layout, view)
    if view.box.open and layout.box == layout.sent:
        pass
    elif snapshot.futures:
        forkview.draw_summary(surface, layout, snapshot.futures)
    else:
        _sent(surface, layout, view)
    _timeline(surface, layout, view)
    _notice(surface, layout, view)
    if view.help:
        draw_help(surface, layout, view.help_rows, view.help)
    return layout


def thumbs(layout: Layout, snapshot: Snapshot) -> list[tuple[Rect, Moment]]:
    """Return the thumbnails shown and where; the last one is now."""
    shown = spread(snapshot.timeline, layout.num_thumbs)
    return [(layout.thumb_at(i), moment) for i, moment in enumerate(shown)]


def spread(moments: Sequence[Moment], most: int) -> tuple[Moment, ...]:
    """Return up to `most` of `moments`, over their whole length, the last one always.

    The spacing in steps is a power of two, so that a growing timeline stands still.
    """
    if most < 2 or not moments:
        return tuple(moments[-1:] if most == 1 else ())
    *past, now = moments
    kept, stride = past, 1
    while len(kept) > most - 1:  # ends: at last only number 0 is left
        stride *= 2
        kept = [moment for moment in past if moment.number % stride == 0]
    return (*kept, now)


def _picture(surface: pygame.Surface, layout: Layout, view: ViewState) -> None:
    place, snapshot = layout.picture, view.snapshot
    pygame.draw.rect(surface, SURFACE, place, border_radius=layout.px(6))
    if snapshot.now is not None:
        surface.blit(frame_surface(snapshot.now.frame, place.size, view.smooth), place)
    if snapshot.status == "failed":
        _failure(surface, layout, view)
    elif snapshot.now is None:
        _loading(surface, layout, view)
    _badges(surface, layout, view)


def _badges(surface: pygame.Surface, layout: Layout, view: ViewState) -> None:
    snapshot = view.snapshot
    if snapshot.status == "paused" and not view.scripted:
        _badge(surface, layout, "PAUSED", TEXT)
    elif view.progress:
        _badge(surface, layout, f"{view.progress}; Space stops", TEXT)
    elif view.busy_s > SLOW_S:
        _badge(surface, layout, f"imagining for {view.busy_s:.0f} s", AMBER)
    if view.recording_s is not None:
        _recording(surface, layout, view.recording_s)


def _badge(surface: pygame.Surface, layout: Layout, text: str, colour) -> None:
    size = layout.px(13)
    width = measure(text, size, bold=True) + layout.px(24)
    place = Rect(0, 0, width, layout.px(28))
    place.midtop = (layout.picture.centerx, layout.picture.y + layout.px(12))
    shade(surface, place, 190, layout.px(14))
    put(surface, text, place.center, size, colour, bold=True, align="center")


def _recording(surface: pygame.Surface, layout: Layout, seconds: float) -> None:
    size = layout.px(13)
    text = f"REC {int(seconds) // 60}:{int(seconds) % 60:02d}"
    width = measure(text, size, bold=True) + layout.px(40)
    place = Rect(0, 0, width, layout.px(28))
    place.topright = (layout.picture.right - layout.px(12), layout.picture.y + layout.px(12))
    if layout.picture.width < layout.px(300):  # beside the badge there is no room
        place.midtop = (layout.picture.centerx, layout.picture.y + layout.px(44))
    shade(surface, place, 190, layout.px(14))
    dot = (place.x + layout.px(16), place.centery)
    pygame.draw.aacircle(surface, RED, dot, layout.px(5))
    put(surface, text, (place.x + layout.px(28), place.centery), size, TEXT, bold=True)


def _loading(surface: pygame.Surface, layout: Layout, view: ViewState) -> None:
    place = layout.picture
    put(surface, view.face.loading, place.center, layout.px(22), TEXT, bold=True, align="center")
    bar = Rect(0, 0, min(layout.px(220), place.width), layout.px(4))
    bar.midtop = (place.centerx, place.centery + layout.px(28))
    pygame.draw.rect(surface, EDGE, bar, border_radius=bar.height)
    part = bar.width // 4
    sweep = abs((view.now_s * 0.6) % 2 - 1)  # to and fro
    bead = Rect(bar.x + round((bar.width - part) * sweep), bar.y, part, bar.height)
    pygame.draw.rect(surface, TEAL, bead, border_radius=bar.height)


def _failure(surface: pygame.Surface, layout: Layout, view: ViewState) -> None:
    """Say what stopped the model and what can be done, as far as there is room."""
    place, error = layout.area, view.snapshot.failure
    shade(surface, place, 225)
    size, row = layout.px(15), layout.px(22)
    width = min(max(1, place.width - layout.px(24)), layout.px(560))
    told = printable(
        str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    )
    advice = ADVICE if isinstance(error, MemoryError) or "out of memory" in told.lower() else ""
    helps = wrap(advice, size, width, most=2)
    most = (place.height - layout.px(70)) // row - len(helps)
    lines = [(line, TEXT) for line in wrap(told, size, width, most)] if most > 0 else []
    lines += [(line, AMBER) for line in helps]
    height = layout.px(30) + row * (len(lines) + 1)
    title = layout.px(22) if place.height > layout.px(70) else size
    at = place.centerx, place.centery - height // 2 + layout.px(11)
    put(
        surface,
        fit("The model stopped", title, place.width, bold=True),
        at,
        title,
        RED,
        bold=True,
        align="center",
    )
    for i, (line, colour) in enumerate(lines):
        y = at[1] + layout.px(34) + row * i
        put(surface, line, (place.centerx, y), size, colour, align="center")
    todo = "Esc to leave" if view.snapshot.now is None else "R to start again, Esc to leave"
    y = at[1] + layout.px(30) + row * len(lines) + layout.px(8)
    put(surface, fit(todo, size, place.width), (place.centerx, y), size, MUTED, align="center")


def _sent(surface: pygame.Surface, layout: Layout, view: ViewState) -> None:
    place, now = layout.sent, view.snapshot.now
    size = layout.px(15)
    label = put(surface, view.face.sent, (place.x, place.centery), layout.px(12), FAINT, bold=True)
    x = label.right + layout.px(12)
    count = ""
    if now is not None:
        count = f"step {now.number}"
        put(surface, count, (place.right, place.centery), size, MUTED, align="right")
    room = place.right - x - measure(count, size) - layout.px(16)
    text = printable(now.text) if now and now.text else "nothing yet"
    colour = AMBER if now and now.keys else TEAL if now and now.instruction else MUTED
    put(surface, fit(text, size, room), (x, place.centery), size, colour)


def _box(surface: pygame.Surface, layout: Layout, view: ViewState) -> None:
    place, box, instruction = layout.box, view.box, view.snapshot.instruction
    radius, size = layout.px(8), layout.px(17)
    pygame.draw.rect(surface, SURFACE, place, border_radius=radius)
    edge = TEAL if box.open else EDGE
    pygame.draw.rect(
        surface, edge, place, width=layout.px(1.5 if box.open else 1), border_radius=radius
    )
    inner = place.inflate(-layout.px(28), 0)
    answer = view.snapshot.answer
    if box.open:
        room = inner.width - _budget(surface, inner, layout, view)
        line = Rect(inner.x, inner.y, max(1, room), inner.height)
        typing(surface, line, layout, box, view.now_s, view.fits)
    elif answer and not layout.panel.width:  # a small window has no panel to show it in
        text = printable(f"{answer.question} {answer.text}")
        put(surface, fit(text, size, inner.width), inner.midleft, size, TEXT)
    elif instruction:
        hint = "Backspace drops it"
        put(surface, hint, inner.midright, layout.px(13), FAINT, align="right")
        room = inner.width - measure(hint, layout.px(13)) - layout.px(16)
        put(surface, fit(printable(instruction), size, room), inner.midleft, size, TEAL)
    else:
        hint = fit(printable(view.face.line()), size, inner.width)
        put(surface, hint, inner.midleft, size, FAINT)


def _budget(surface: pygame.Surface, inner: Rect, layout: Layout, view: ViewState) -> int:
    """Write how many tokens of how many the sentence has. Returns the room that takes."""
    info, text = view.snapshot.info, view.box.text
    if not (info and info.count_tokens and text.strip()) or inner.width < layout.px(260):
        return 0
    count, size = info.count_tokens(text), layout.px(13)
    over = count > info.max_tokens
    words = f"{count} of {info.max_tokens} tokens" + (": too long" if over else "")
    place = put(surface, words, inner.midright, size, RED if over else FAINT, align="right")
    return place.width + layout.px(16)


def _timeline(surface: pygame.Surface, layout: Layout, view: ViewState) -> None:
    shown = thumbs(layout, view.snapshot)
    for i, (place, moment) in enumerate(shown):
        surface.blit(frame_surface(moment.frame, place.size, True), place)
        last = i == len(shown) - 1
        colour = AMBER if moment.keys else TEAL if moment.instruction else EDGE
        mark = Rect(place.x, place.bottom - layout.px(3), place.width, layout.px(3))
        pygame.draw.rect(surface, colour, mark)
        if last:
            pygame.draw.rect(surface, TEXT, place, width=layout.px(2))


def _notice(surface: pygame.Surface, layout: Layout, view: ViewState) -> None:
    snapshot = view.snapshot
    fresh = snapshot.notice and view.now_s - snapshot.notice_s < NOTICE_S
    text = view.notice or (snapshot.notice if fresh else "")
    if not text:
        return
    size, area = layout.px(15), layout.picture
    width = max(area.width, layout.sent.width) - layout.px(32)
    lines = wrap(printable(text), size, width - layout.px(32), most=4)
    text_w = max(measure(line, size) for line in lines)
    place = Rect(0, 0, text_w + layout.px(32), layout.px(22) * len(lines) + layout.px(16))
    place.midbottom = (layout.sent.centerx, area.bottom - layout.px(14))
    shade(surface, place, 235, layout.px(8))
    pygame.draw.rect(surface, AMBER, place, width=layout.px(1), border_radius=layout.px(8))
    for i, line in enumerate(lines):
        at = (place.centerx, place.y + layout.px(8) + layout.px(22) * i + layout.px(11))
        put(surface, line, at, size, TEXT, align="center")
