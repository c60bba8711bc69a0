"""The look of our pages, and the pieces that they are made of: HTML that loads nothing.

Colours and type are those of the viewer (`viewer/theme.py`): slate, amber for what hands do, teal
for what is said; light where the reader's system is. All text that is given is escaped here.
"""

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from worldmodel.evaluate.sheets import Sheet

_STYLE = """
:root { color-scheme: light dark; --page:#f4f5f7; --card:#fff; --raised:#eef0f3; --ink:#12161c;
  --soft:#535d6c; --edge:#d8dce2; --good:#2f6b12; --bad:#a92a22; --warn:#8a5600;
  --good-bg:#e4f2db; --bad-bg:#fbe6e4; --warn-bg:#fbeed8;
  --s0:#b26a00; --s1:#0b7a70; --s2:#4263c9; --s3:#a3418f; --s4:#6b7585; --s5:#7a6a00 }
@media (prefers-color-scheme: dark) { :root { --page:#0e1116; --card:#171b22; --raised:#212730;
  --ink:#e6eaf0; --soft:#929cab; --edge:#2f3642; --good:#96cd76; --bad:#eb6b63; --warn:#f2b762;
  --good-bg:#1c2c19; --bad-bg:#351c1d; --warn-bg:#33291a;
  --s0:#f2b762; --s1:#6cc9be; --s2:#8aa6ff; --s3:#d990c9; --s4:#929cab; --s5:#c9c06c } }
* { box-sizing:border-box } html { scroll-behavior:smooth; -webkit-text-size-adjust:100% }
body { margin:0; background:var(--page); color:var(--ink);
  font:15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
main { max-width:1140px; margin:0 auto; padding:28px 20px 72px }
h1 { font-size:30px; line-height:1.15; letter-spacing:-.02em; margin:6px 0 10px;
  overflow-wrap:anywhere }
h2 { font-size:20px; letter-spacing:-.01em; margin:44px 0 4px }
section { scroll-margin-top:20px }
h3 { font-size:15px; margin:26px 0 8px } p { margin:4px 0 14px; max-width:78ch }
p, small, .soft { color:var(--soft) } .kind { color:var(--s1); font-weight:600; font-size:12.5px;
  letter-spacing:.09em; text-transform:uppercase }
nav { position:sticky; top:0; z-index:2; background:var(--page);
  border-bottom:1px solid var(--edge); margin:18px -20px 0; padding:9px 20px;
  display:flex; gap:6px 20px; overflow-x:auto; scrollbar-width:none; font-size:13.5px;
  white-space:nowrap }
nav a { color:var(--soft); text-decoration:none } nav a:hover, nav a:focus { color:var(--s0) }
.facts { display:flex; flex-wrap:wrap; gap:5px 7px; margin:0; padding:0; list-style:none;
  font-size:12.5px } .facts li { background:var(--raised); border-radius:5px; padding:1px 8px;
  overflow-wrap:anywhere } .facts b { font-weight:500; color:var(--soft); margin-right:5px }
.tiles, .plots { display:grid; gap:12px; grid-template-columns:repeat(auto-fit,minmax(140px,1fr)) }
.tiles { margin-top:18px }
.plots { grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr)) }
.tile, figure, .verdicts, .scroll, .note { background:var(--card); border:1px solid var(--edge);
  border-radius:10px } .tile { padding:12px 15px; font-size:13px; color:var(--soft) }
.tile b { display:block; font-size:27px; line-height:1.2; letter-spacing:-.02em; color:var(--ink);
  font-variant-numeric:tabular-nums } .tile:first-child { border-top:3px solid var(--s0);
  padding-top:10px } .tile span { font-size:12.5px }
.note { padding:10px 16px; margin:14px 0; background:var(--warn-bg); border-color:transparent }
.note strong { color:var(--warn) } .note ul { margin:4px 0; padding-left:18px }
.verdicts { list-style:none; padding:0; margin:14px 0; overflow:hidden; display:grid; gap:1px;
  background:var(--edge); grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr)) }
.verdicts li { display:grid; grid-template-columns:58px 1fr; gap:0 12px; padding:10px 16px;
  background:var(--card); align-content:start }
.verdicts li:last-child:nth-child(odd) { grid-column:1 / -1 }
.verdicts div { grid-column:2; color:var(--soft); font-size:13.5px }
.mark { font-weight:600; font-size:12.5px; border-radius:5px; padding:1px 8px; align-self:start;
  white-space:nowrap; text-align:center } .yes { color:var(--good); background:var(--good-bg) }
.no { color:var(--bad); background:var(--bad-bg) }
figure { margin:0; padding:13px 16px } figcaption { font-weight:600; margin-bottom:6px;
  line-height:1.4 } figcaption small { font-weight:400 }
svg { width:100%; height:auto; display:block } svg text { fill:var(--soft); font-size:13px;
  font-family:inherit } .tick { text-anchor:middle } .tick.left { text-anchor:end }
.grid { stroke:var(--edge) } .zero { stroke:var(--soft); stroke-width:1.2 }
.line { fill:none; stroke-width:2.2; stroke-linejoin:round } .band { opacity:.17 }
.dot { stroke:none } .spot { fill:transparent } .spot:hover { fill:var(--ink) }
.legend { display:flex; flex-wrap:wrap; gap:1px 14px; font-size:12.5px; color:var(--soft);
  margin-top:4px } .legend i { display:inline-block; width:18px; border-top:3px solid;
  vertical-align:middle; margin-right:6px } .legend i.dash { border-top-style:dashed }
.bars { display:grid; grid-template-columns:minmax(96px,190px) 1fr 62px; gap:9px 12px;
  align-items:center; font-size:13.5px; margin:10px 0 2px } .bars b { font-weight:500;
  text-align:right; font-variant-numeric:tabular-nums } .track { position:relative; height:18px;
  background:var(--raised); border-radius:4px } .track i { position:absolute; inset:0 auto 0 0;
  border-radius:4px; background:var(--s4) } .track i.strong { background:var(--s0) }
.track u { position:absolute; top:8px; height:2px; background:var(--ink) }
.sheet { margin-bottom:12px } .sheet video { display:block; width:100%; max-width:780px;
  border-radius:6px; background:#18181b; margin:0 auto } .strip { overflow-x:auto; margin-top:8px }
.strip img { display:block; max-width:100%; min-width:720px; border-radius:6px }
.scroll { overflow-x:auto; margin-top:10px } table { border-collapse:collapse; width:100%;
  font-size:13.5px; font-variant-numeric:tabular-nums } th, td { padding:5px 12px;
  text-align:right; border-top:1px solid var(--edge); white-space:nowrap; vertical-align:top }
thead th { color:var(--soft); font-weight:500; border-top:0 } tbody th { font-weight:400 }
th:first-child, td:first-child { text-align:left } th.text { text-align:left }
td.text { white-space:normal; min-width:150px;
  text-align:left; overflow-wrap:anywhere } td.odd { background:var(--warn-bg) }
.wrap { white-space:normal; display:block; min-width:150px }
details { margin-top:12px } summary { cursor:pointer; color:var(--soft); font-size:14px }
:focus-visible { outline:2px solid var(--s1); outline-offset:2px }
@media (max-width:560px) { main { padding:20px 14px 56px } h1 { font-size:25px }
  nav { margin:14px -14px 0; padding:8px 14px } .tiles { grid-template-columns:1fr 1fr }
  .tile b { font-size:23px } figure { padding:12px } .bars { grid-template-columns:1fr 58px }
  .bars span { grid-column:1 / -1; margin-bottom:-8px } }
@media print { nav { display:none } .tile, figure, .verdicts { break-inside:avoid } }
"""

# Films run while they are seen, and not at all for readers who asked for less motion.
_SCRIPT = """
if (!matchMedia("(prefers-reduced-motion: reduce)").matches && "IntersectionObserver" in window) {
  const seen = new IntersectionObserver(found => found.forEach(({target, isIntersecting}) =>
    isIntersecting ? target.play().catch(() => {}) : target.pause()));
  document.querySelectorAll("video").forEach(film => seen.observe(film));
}
"""

_QUALITY = 84  # of the strips in a page, WebP; the PNG files beside it lose nothing


@dataclass(frozen=True)
class Section:
    """A part of a page: a title (text) and its HTML."""

    title: str
    body: str


def page(title: str, head: str, sections: Sequence[Section]) -> str:
    """Return a page from a title (text), the HTML above everything, and its parts.

    Parts that are empty are left out.
    """
    shown = [section for section in sections if section.body]
    links, parts = [], []
    for i, section in enumerate(shown):
        title = escape(section.title)
        links.append(f'<a href="#s{i}">{title}</a>')
        parts.append(f'<section id="s{i}"><h2>{title}</h2>{section.body}</section>')
    nav = f'<nav aria-label="Parts of this page">{"".join(links)}</nav>' if len(links) > 1 else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f"<header>{head}</header>{nav}{''.join(parts)}</main><script>{_SCRIPT}</script>"
        "</body></html>\n"
    )


def escape(text: object) -> str:
    """Return text as HTML."""
    return html.escape(str(text))


def number(value: float) -> str:
    """Return a number with three digits that count, or a dash for one that is not finite."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if value == 0 or 0.0995 <= size < 9.995:
        return f"{value:.3f}"
    if 9.995 <= size < 1e6:
        return f"{value:.1f}" if size < 999.5 else f"{value:.0f}"
    return f"{value:.3g}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    """Return a table from headings (text) and rows of cells (HTML, or a whole `<td>`).

    The first cell of a row is its heading. A column of words (`<td class="text">`) is set left.
    """
    words = [any(row[i].startswith('<td class="text') for row in rows) for i in range(len(heads))]
    head = "".join(
        f'<th scope="col"{" class=text" if left else ""}>{escape(name)}</th>'
        for name, left in zip(heads, words, strict=True)
    )
    lines = []
    for first, *rest in rows:
        cells = "".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in rest)
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def mark(passed: bool) -> str:
    """Return yes or no."""
    return f'<span class="mark {"yes" if passed else "no"}">{"✓ yes" if passed else "✗ no"}</span>'


def facts(pairs: Sequence[tuple[str, object]]) -> str:
    """Return names with values, a line of small boxes; empty values are left out."""
    items = [f"<li><b>{escape(k)}</b>{escape(v)}</li>" for k, v in pairs if v not in ("", None)]
    return f'<ul class="facts">{"".join(items)}</ul>'


def sheet(one: Sheet) -> str:
    """Return a contact sheet: its film, and the strip below it."""
    below = f"<details><summary>As a strip</summary>{_strip(one)}</details>" if one.mp4 else ""
    return (
        f'<figure class="sheet"><figcaption>{escape(one.title)} '
        f"<small>{escape(one.caption)}</small></figcaption>{film(one)}{below}</figure>"
    )


def film(one: Sheet) -> str:
    """Return the film of a contact sheet, or its strip where it has none."""
    if not one.mp4:
        return _strip(one)
    return (
        f'<video src="data:video/mp4;base64,{base64.b64encode(one.mp4).decode()}" controls loop '
        f'muted playsinline preload="metadata" aria-label="{_alt(one)}"></video>'
    )


def _strip(one: Sheet) -> str:
    out = io.BytesIO()
    Image.open(io.BytesIO(one.png)).save(out, "WEBP", quality=_QUALITY, method=4)
    return (
        f'<div class="strip" tabindex="0"><img alt="{_alt(one)}, as a strip" loading="lazy" '
        f'src="data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"></div>'
    )


def _alt(one: Sheet) -> str:
    return escape(f"{one.title}: {one.caption}")
