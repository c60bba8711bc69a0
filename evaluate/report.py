"""The report of a scorecard: one HTML file that needs no other file and no network."""

import base64
import html
import math
from collections.abc import Sequence
from pathlib import Path

from worldmodel.evaluate.plots import Bar, Line, bars, lines
from worldmodel.evaluate.scorecard import Metric, Scorecard
from worldmodel.evaluate.sheets import Sheet

_STYLE = """
:root { color-scheme: light dark; --page:#f6f7f9; --card:#fff; --ink:#16181d; --soft:#5b6270;
  --rule:#e3e6eb; --good:#12773d; --bad:#b3261e; --good-bg:#e6f4ea; --bad-bg:#fdeceb;
  --s0:#2563eb; --s1:#d9730d; --s2:#0f8a5f; --s3:#9333b8; --s4:#8a92a0; }
@media (prefers-color-scheme: dark) { :root { --page:#111317; --card:#1a1d23; --ink:#e9ebef;
  --soft:#a2a9b6; --rule:#2d323b; --good:#63d394; --bad:#ff8a80; --good-bg:#15301f;
  --bad-bg:#3a1917; --s0:#6ea2ff; --s1:#f5a352; --s2:#4fd1a1; --s3:#d08bf0; --s4:#7d8594; } }
* { box-sizing:border-box } body { margin:0; background:var(--page); color:var(--ink);
  font:15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
main { max-width:1120px; margin:0 auto; padding:32px 20px 64px }
h1 { font-size:28px; margin:0 } h2 { font-size:19px; margin:40px 0 4px }
p { color:var(--soft); margin:4px 0 14px; max-width:80ch } small { color:var(--soft) }
.tiles, .plots { display:grid; gap:14px; grid-template-columns:repeat(auto-fit,minmax(170px,1fr)) }
.plots { grid-template-columns:repeat(auto-fit,minmax(320px,1fr)) }
.tile, figure, .verdicts, .scroll { background:var(--card); border:1px solid var(--rule);
  border-radius:10px }
.tile { padding:12px 16px } .tile b { display:block; font-size:25px; line-height:1.25;
  font-variant-numeric:tabular-nums } .tile span { color:var(--soft); font-size:13px }
.verdicts { list-style:none; padding:0; margin:18px 0; overflow:hidden }
.verdicts li { display:grid; grid-template-columns:auto 1fr; gap:2px 14px; padding:11px 16px;
  border-top:1px solid var(--rule) } .verdicts li:first-child { border-top:0 }
.verdicts div { grid-column:2; color:var(--soft); font-size:13.5px }
.mark { font-weight:600; font-size:13px; border-radius:6px; padding:1px 9px; align-self:start }
.yes { color:var(--good); background:var(--good-bg) } .no { color:var(--bad);
  background:var(--bad-bg) }
figure { margin:0; padding:14px 16px } figcaption { font-weight:600; margin-bottom:6px }
figcaption small { font-weight:400 } svg { width:100%; height:auto; display:block }
svg text { fill:var(--soft); font-size:11.5px; font-family:inherit }
.tick { text-anchor:middle } .tick.left, .name { text-anchor:end } .grid { stroke:var(--rule) }
svg .name, svg .value { fill:var(--ink); font-size:13px }
.line { fill:none; stroke-width:2; stroke-linejoin:round } .band { opacity:.16 }
.spot { fill:transparent } .spot:hover { fill:var(--ink) }
.whisker { stroke:var(--ink); stroke-width:1.5 }
.legend { display:flex; flex-wrap:wrap; gap:2px 14px; font-size:12.5px; color:var(--soft);
  margin-top:6px } .legend i { display:inline-block; width:18px; border-top:3px solid;
  vertical-align:middle; margin-right:6px } .legend i.dash { border-top-style:dashed }
.sheet { margin-bottom:14px; overflow-x:auto } .sheet img { max-width:100%; min-width:720px;
  border-radius:6px; display:block } .scroll { overflow-x:auto; margin-top:10px }
table { border-collapse:collapse; width:100%; font-size:13.5px;
  font-variant-numeric:tabular-nums } th, td { padding:5px 12px; text-align:right;
  border-top:1px solid var(--rule); white-space:nowrap } th { color:var(--soft);
  font-weight:500; border-top:0 } th:first-child, td:first-child { text-align:left }
summary { cursor:pointer; margin-top:32px; color:var(--soft) }
"""

_QUALITY = [
    ("ssim", "SSIM", "higher is better"),
    ("encoder_distance", "Encoder distance", "lower is better"),
    ("psnr", "PSNR, dB", "higher is better"),
]
_READERS = [
    ("real", "real clips (ceiling)"),
    ("reconstruction", "real, decoded"),
    ("imagined", "imagined"),
    ("other_actions", "imagined, other actions"),
    ("shuffled", "imagined, shuffled"),
]


def write_report(card: Scorecard, sheets: Sequence[Sheet], path: Path) -> None:
    """Write the page of a scorecard and its contact sheets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(card, sheets), encoding="utf-8")


def render(card: Scorecard, sheets: Sequence[Sheet]) -> str:
    """Return the page as text."""
    body = "".join(
        [
            *(part(card) for part in (_head, _verdicts, _skills, _quality, _following, _keys)),
            "<h2>Contact sheets</h2>" if sheets else "",
            *map(_sheet, sheets),
            _everything(card),
        ]
    )
    return page(f"{card.checkpoint}: {card.suite} evaluation", body)


def page(title: str, body: str) -> str:
    """Return a page with our style from a title (plain text) and a body (HTML)."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><main>{body}</main>"
        "</body></html>\n"
    )


def _head(card: Scorecard) -> str:
    facts = [
        f"split {card.split} of {card.store}" if card.store else "played beside the real world",
        f"{card.device}, {card.dtype}",
        *(f"{k.replace('_', ' ')} {v}" for k, v in card.settings.items()),
        f"seed {card.seed}",
        f"version {card.version}",
        f"commit {card.commit[:10]}" if card.commit else "no git checkout",
        f"checkpoint {card.checkpoint_hash[:10]}" if card.checkpoint_hash else "",
    ]
    tiles = [
        _tile(card, "ssim", 1, "SSIM, 1 step ahead"),
        _tile(card, "ssim", 16, "SSIM, 16 steps ahead"),
        _tile(card, "idm_ratio", None, "actions read, of real", percent=True),
        _tile(card, "perplexity", None, "text perplexity"),
        _tile(card, "answer_accuracy", None, "questions answered", percent=True),
        _tile(card, "fps", None, "imagined frames/s"),
    ]
    listed = html.escape(" · ".join(f for f in facts if f))
    return (
        f"<h1>{html.escape(card.checkpoint)}</h1><p>{listed}</p>"
        f'<div class="tiles">{"".join(tiles)}</div>'
    )


def _tile(
    card: Scorecard, name: str, horizon: int | None, label: str, percent: bool = False
) -> str:
    try:
        m = card.get(name, horizon)
    except KeyError:
        return ""
    show = (lambda v: f"{v:.0%}") if percent else _number
    beside = f", copy {_number(m.baselines['copy'])}" if "copy" in m.baselines else ""
    span = f"{show(m.low)} to {show(m.high)}{beside}"
    return f'<div class="tile">{label}<b>{show(m.value)}</b><span>{span}</span></div>'


def _verdicts(card: Scorecard) -> str:
    rows = [
        f'<li><span class="mark {"yes" if v.passed else "no"}">{"✓ yes" if v.passed else "✗ no"}'
        f"</span><strong>{html.escape(v.name)}</strong>"
        f"<div>Found: {html.escape(v.found)}</div><div>Asked: {html.escape(v.required)}</div></li>"
        for v in card.verdicts
    ]
    held = sum(v.passed for v in card.verdicts)
    return (
        f"<h2>Requirements</h2><p>{held} of {len(rows)} hold.</p>"
        f'<ul class="verdicts">{"".join(rows)}</ul>'
    )


def _quality(card: Scorecard) -> str:
    plots = []
    for name, title, note in _QUALITY:
        curve = card.curve(name)
        if curve:
            plots.append(lines(f"{title} ({note})", "steps ahead", _with_baselines(curve)))
    return (
        "<h2>Imagined against true futures</h2><p>Held-out levels. Beside the model: the last "
        "given frame copied; the true frame encoded and decoded, the best that can be shown; the "
        "same noise under another clip's actions, and under none. Bands are 95 % bootstrap "
        f'intervals over clips.</p><div class="plots">{"".join(plots)}</div>'
    )


def _with_baselines(curve: Sequence[Metric]) -> list[Line]:
    xs = [float(m.horizon or 0) for m in curve]
    model = Line(
        "model", xs, [m.value for m in curve], [m.low for m in curve], [m.high for m in curve]
    )
    others = [
        Line(name, xs, [m.baselines[name] for m in curve], dashed=True)
        for name in curve[0].baselines
    ]
    return [model, *others]


def _following(card: Scorecard) -> str:
    known = {m.name: m for m in card.metrics}
    items = []
    for key, label in _READERS:
        if m := known.get(f"idm_exact_{key}"):
            items.append(Bar(label, m.value, m.low, m.high, key in ("imagined", "other_actions")))
    if not items:
        return ""
    return (
        "<h2>Does it obey?</h2><p>An inverse-dynamics model, trained on real clips, reads the keys "
        "off the frames: the share of steps whose whole key combination is read right. “Other "
        "actions” are another clip's, and read as those; “shuffled” are the same rollouts read "
        "as the clip's own actions, which is what ignoring the actions would give.</p>"
        + bars("Key combination read right", items)
    )


def _skills(card: Scorecard) -> str:
    found = [m for m in card.metrics if "pass mark" in m.baselines]
    if not found:
        return ""
    others = ("real", "copy", "noise")
    rows = []
    for m in found:
        mark = m.baselines["pass mark"]
        cells = [f"<td>{html.escape(m.name)}</td><td>{mark:.2f}</td>"]
        for value in (m.value, *(m.baselines[name] for name in others)):
            tick = "" if not math.isfinite(value) else " ✓" if value >= mark else " ✗"
            cells.append(f"<td>{value:.2f}{tick}</td>" if tick else "<td>–</td>")
        cells.append(f"<td>{m.low:.2f} to {m.high:.2f}</td><td>{m.n}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    names = ["check", "pass mark", "model", "real world", "copy", "noise", "95 % interval", "n"]
    heads = "".join(f"<th>{name}</th>" for name in names)
    return (
        "<h2>Skills</h2><p>A score is 1 at best. The pass mark is a fixed share of the score of "
        "the real world under the same keys, where it can be measured. “Copy” shows the first "
        "frame all the time, “noise” random pixels; n counts starts.</p>"
        f'<div class="scroll"><table><tr>{heads}</tr>{"".join(rows)}</table></div>'
    )


def _keys(card: Scorecard) -> str:
    known = {m.name: m for m in card.metrics if m.horizon is None}
    keys = [name[4:-7] for name in known if name.startswith("key_") and name.endswith("_change")]
    if not keys:
        return ""
    rows = []
    for key in keys:
        cells = [f"<td>{html.escape(key)}</td>"]
        for what in ("change", "sharpness", "strangeness", "read"):
            m = known[f"key_{key}_{what}"]
            bounds = " to ".join(_number(v) for v in m.baselines.values())
            cells.append(f"<td>{_number(m.value)} <small>({bounds})</small></td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    names = ["change", "sharpness", "encoder distance to the nearest real frame", "read as the key"]
    heads = "".join(f"<th>{name}</th>" for name in ["key", *names])
    plots = [
        lines(title, "steps held", [_held(card, key, what) for key in keys])
        for what, title in [
            ("change_at", "Change from frame to frame (0 to 255)"),
            ("strangeness_at", "Encoder distance to the nearest real frame"),
            ("read_at", "Share of steps read as the key"),
        ]
    ]
    return (
        "<h2>One key held</h2><p>In brackets what real clips show: the range of single steps or "
        "frames, the largest distance, the share read. A walker meets a wall: for keys that walk, "
        "reading and movement are judged in the first steps only.</p>"
        f'<div class="plots">{"".join(plots)}</div>'
        f'<div class="scroll"><table><tr>{heads}</tr>{"".join(rows)}</table></div>'
    )


def _held(card: Scorecard, key: str, what: str) -> Line:
    curve = card.curve(f"key_{key}_{what}")
    return Line(key, [float(m.horizon or 0) for m in curve], [m.value for m in curve])


def _sheet(sheet: Sheet) -> str:
    data = base64.b64encode(sheet.png).decode()
    return (
        f'<figure class="sheet"><figcaption>{html.escape(sheet.title)} '
        f"<small>{html.escape(sheet.caption)}</small></figcaption>"
        f'<img alt="{html.escape(sheet.caption)}" src="data:image/png;base64,{data}"></figure>'
    )


def _everything(card: Scorecard) -> str:
    rows = []
    for m in card.metrics:
        beside = ", ".join(f"{html.escape(k)} {_number(v)}" for k, v in m.baselines.items())
        rows.append(
            f"<tr><td>{html.escape(m.name)}</td><td>{m.horizon or ''}</td><td>{_number(m.value)} "
            f"{m.unit}</td><td>{_number(m.low)} to {_number(m.high)}</td><td>{m.n}</td>"
            f"<td>{beside}</td></tr>"
        )
    names = ["metric", "horizon", "value", "95 % interval", "n", "baselines"]
    heads = "".join(f"<th>{name}</th>" for name in names)
    return (
        f"<details><summary>All {len(rows)} numbers</summary>"
        f'<div class="scroll"><table><tr>{heads}</tr>{"".join(rows)}</table></div></details>'
    )


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
