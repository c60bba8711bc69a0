"""The panel beside the picture: the key table, the model's figures, where it runs."""

import pygame
from pygame import Rect

from worldmodel.actions import ActionRow
from worldmodel.viewer.fonts import fit, measure, printable, put, wrap
from worldmodel.viewer.gauges import draw_experts, draw_trust
from worldmodel.viewer.layout import Layout
from worldmodel.viewer.snapshot import ModelInfo
from worldmodel.viewer.theme import AMBER, EDGE, FAINT, MUTED, SURFACE, TEAL, TEXT
from worldmodel.viewer.view import ViewState
from worldmodel.viewer.widgets import heading, keycap

SLOW = 0.8
"""Of the pace aimed at, below which it is said to be missed."""


def draw_panel(surface: pygame.Surface, layout: Layout, view: ViewState) -> None:
    """Draw the panel; what finds no room at the bottom is left out."""
    place = layout.panel
    pygame.draw.rect(surface, SURFACE, place, border_radius=layout.px(12))
    pad = layout.px(22)
    inner = Rect(place.x + pad, place.y + pad, place.width - 2 * pad, place.height - 2 * pad)
    foot = _hints(surface, layout, view, inner)
    y = _title(surface, layout, view, inner)
    watching = view.snapshot.dials.watching
    parts = (draw_experts, draw_trust, _speed) if watching else (draw_trust, _speed, _machine)
    for part in (_keys, _answer, *parts):
        y = part(surface, layout, view, Rect(inner.x, y, inner.width, max(0, foot - y)))


def _title(surface: pygame.Surface, layout: Layout, view: ViewState, inner: Rect) -> int:
    info, snapshot = view.snapshot.info, view.snapshot
    name = info.name if info else "worldmodel"
    y = inner.y + layout.px(12)
    put(
        surface,
        fit(name, layout.px(24), inner.width, bold=True),
        (inner.x, y),
        layout.px(24),
        TEXT,
        bold=True,
    )
    y += layout.px(28)
    if not info:
        about = "did not load" if snapshot.failure else "loading"
    elif view.face.about:
        about = view.face.about()
    elif snapshot.now and snapshot.now.sight:
        about = f"beside {snapshot.now.sight.name}"
    elif snapshot.begin:
        about = f"imagined from {snapshot.begin}"
    elif info.num_starts:
        about = f"imagined world, start {snapshot.start % info.num_starts + 1} of {info.num_starts}"
    else:
        about = f"{info.spec.name}, start {snapshot.start}"
    size = layout.px(14)
    put(surface, fit(printable(about), size, inner.width), (inner.x, y), size, MUTED)
    if info and info.device != "none" and inner.height > layout.px(340):
        y += layout.px(21)
        put(surface, fit(_device(info), size, inner.width), (inner.x, y), size, MUTED)
    return y + layout.px(28)


def _device(info: ModelInfo) -> str:
    """Where the model runs, which nothing pushes off the panel."""
    threads = f"{info.threads} thread{'s' * (info.threads != 1)}" if info.threads else ""
    return "on " + ", ".join(part for part in (info.device, threads, info.dtype) if part)


def _keys(surface: pygame.Surface, layout: Layout, view: ViewState, area: Rect) -> int:
    info = view.snapshot.info
    if not info or area.height < layout.px(80):
        return area.y
    y = heading(surface, layout, "Keys", area)
    row_h, size = layout.px(30), layout.px(15)
    column = area.width // 2
    for i, row in enumerate(info.spec.actions.rows):
        at = (area.x + (i % 2) * column, y + (i // 2) * row_h)
        if at[1] + row_h > area.bottom:
            break
        lit = row.key in view.held
        cap = keycap(surface, layout, view.cap(row.key), at, lit=lit)
        x = cap.right + layout.px(8)
        meaning = fit(_meaning(row), size, area.x + (i % 2 + 1) * column - x - 2)
        put(surface, meaning, (x, at[1]), size, TEXT if lit else MUTED)
    return y + -(-len(info.spec.actions.rows) // 2) * row_h + layout.px(6)


def _meaning(row: ActionRow) -> str:
    return row.name if len(row.name) > 1 else row.meaning


def _answer(surface: pygame.Surface, layout: Layout, view: ViewState, area: Rect) -> int:
    answer = view.snapshot.answer
    if not answer or area.height < layout.px(80):
        return area.y
    y = heading(surface, layout, f"Asked at step {answer.number}", area)
    size = layout.px(15)
    for text, colour in ((answer.question, MUTED), (answer.text or "(nothing)", TEXT)):
        for line in wrap(printable(text), size, area.width, most=2):
            put(surface, line, (area.x, y), size, colour)
            y += layout.px(21)
    return y + layout.px(6)


def _speed(surface: pygame.Surface, layout: Layout, view: ViewState, area: Rect) -> int:
    if not view.snapshot.info or area.height < layout.px(80):
        return area.y
    y = heading(surface, layout, "Speed", area) + layout.px(10)
    latency = "-" if view.latency_ms is None else f"{view.latency_ms:.0f}"
    fps, wanted = view.snapshot.fps, view.snapshot.wanted_fps
    unit = f"frames / s of {wanted:.0f}" if wanted and not view.scripted else "frames / s"
    slow = 0 < fps < SLOW * wanted and not view.scripted
    figures = ((f"{fps:.1f}", unit, slow), (latency, "ms key to frame", False))
    for i, (value, unit, warns) in enumerate(figures):
        x = area.x + i * area.width // 2
        put(surface, value, (x, y), layout.px(30), AMBER if warns else TEXT, bold=True)
        put(surface, unit, (x, y + layout.px(26)), layout.px(13), MUTED)
    y += layout.px(50)
    chart = Rect(area.x, y, area.width, layout.px(28))
    if chart.bottom + layout.px(20) > area.bottom:
        return y
    _sparkline(surface, layout, view, chart)
    caption, size = fit(_stages(view), layout.px(13), area.width), layout.px(13)
    put(surface, caption, (area.x, chart.bottom + layout.px(12)), size, MUTED)
    return chart.bottom + layout.px(34)


def _stages(view: ViewState) -> str:
    """What the last step took, and what of it its parts did."""
    if view.face.stages and (told := view.face.stages()):
        return told
    if not view.step_times_ms:
        return "no step yet"
    step_ms, passes_ms = view.snapshot.step_ms, view.snapshot.dials.denoise_ms
    if passes_ms is None or passes_ms > step_ms:
        return f"{step_ms:.0f} ms a step, draw {view.draw_ms:.0f}"
    rest_ms = step_ms - passes_ms  # the frame goes into the past, and becomes pixels
    parts = f"denoise {passes_ms:.0f}, rest {rest_ms:.0f}, draw {view.draw_ms:.0f}"
    return f"{step_ms:.0f} ms: {parts}"


def _sparkline(surface: pygame.Surface, layout: Layout, view: ViewState, chart: Rect) -> None:
    """Bars of the latest step times, scaled to twice their median."""
    times = view.step_times_ms
    width, gap = layout.px(3), layout.px(1)
    times = times[-(chart.width // (width + gap)) :]
    top = 2 * sorted(times)[len(times) // 2] if times else 1.0
    pygame.draw.line(surface, EDGE, chart.bottomleft, chart.bottomright)
    for i, value in enumerate(times):
        height = max(1, round(chart.height * min(1.0, value / max(top, 1e-9))))
        bar = Rect(chart.x + i * (width + gap), chart.bottom - height, width, height)
        pygame.draw.rect(surface, TEAL if value <= top else AMBER, bar)


def _machine(surface: pygame.Surface, layout: Layout, view: ViewState, area: Rect) -> int:
    info, snapshot = view.snapshot.info, view.snapshot
    if not info or area.height < layout.px(90):
        return area.y
    y = heading(surface, layout, "Machine", area)
    size = layout.px(15)
    rows = [("denoising", _denoising(view)), ("context", _context(view))]
    for label, value in rows:
        if not value or y + layout.px(12) > area.bottom:
            continue
        put(surface, label, (area.x, y), size, MUTED)
        x = area.x + layout.px(88)
        put(surface, fit(value, size, area.right - x), (x, y), size, TEXT)
        y += layout.px(24)
    lines = wrap(info.reason, layout.px(13), area.width, most=2)
    if snapshot.journal:  # its end tells one session from another
        lines.append(fit(f"writes {snapshot.journal}", layout.px(13), area.width, tail=True))
    for line in lines:
        if y + layout.px(10) > area.bottom:
            break
        put(surface, line, (area.x, y), layout.px(13), FAINT)
        y += layout.px(19)
    return y


def _denoising(view: ViewState) -> str:
    now, wanted = view.snapshot.denoise_steps, view.snapshot.wanted_denoise
    if not now:
        return ""
    if wanted > now:
        return f"{now} of {wanted}, to keep up"
    keys = "" if "finer" in view.face.missing else "  (+ -)"
    return f"{now} step{'s' * (now != 1)}{keys}"


def _context(view: ViewState) -> str:
    """How many frames of the past the model sees, and how many of those it imagined itself."""
    info, imagined = view.snapshot.info, view.snapshot.imagined
    if not info or not info.window:
        return ""
    own = "all" if imagined >= info.window else str(imagined)
    return f"{info.window} frames, {own} imagined"


def _hints(surface: pygame.Surface, layout: Layout, view: ViewState, inner: Rect) -> int:
    """Draw keys with a word each, in as many rows as they need. Returns where they begin."""
    rows: list[list[tuple[str, str]]] = [[]]
    size, used = layout.px(13), 0
    for key, meaning in view.hints:
        width = max(26, measure(key, size, True) + 14) + measure(meaning, size) + layout.px(20)
        if used and used + width > inner.width:
            rows.append([])
            used = 0
        rows[-1].append((key, meaning))
        used += width
    row_h = layout.px(34)
    top = inner.bottom - layout.px(6) - row_h * (len(rows) - 1)
    for i, row in enumerate(rows):
        x, y = inner.x, top + i * row_h
        for key, meaning in row:
            cap = keycap(surface, layout, key, (x, y), lit=False)
            text = put(surface, meaning, (cap.right + layout.px(6), y), size, MUTED)
            x = text.right + layout.px(14)
    return top - layout.px(18)
