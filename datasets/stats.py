"""Figures of a store: actions, lengths, where the agent has been, brightness."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from worldmodel.datasets.care import labelled, level_of
from worldmodel.datasets.store import EpisodeStore
from worldmodel.errors import UserError

CELL_M = 1.0
"""Side of the squares by which coverage is counted, metres."""

_LUMA = np.array([0.299, 0.587, 0.114])
_DARK = 40.0  # mean luma (0 to 255) below which a frame counts as dark
_EVERY = 4  # every n-th frame is looked at for brightness
_LENGTHS = (16, 64, 256, 1024)  # upper ends of the classes of episode lengths, in steps


def measure(store: EpisodeStore, names: Sequence[str]) -> dict[str, Any]:
    """Return figures of some episodes, as plain JSON values.

    Returns:
        `episodes`, `frames`, `steps`, `damaged` (numbers); `unlabelled` (episodes);
        `lengths` {min, median, max, classes {'<=16': n, ...}} in steps;
        `actions` {text: {steps, share}}, of the labelled steps, most frequent first;
        `moves` {dx, dy, dyaw: {min, mean, max, still}} in metres and degrees per step;
        `coverage` {cell_m, levels, cells, cells_per_level, visits_per_cell}, None without poses;
        `brightness` {mean, std, p5, p95, dark}, luma 0 to 255, `dark` the share below 40.
    """
    lengths, moves, lumas = [], [], []
    actions: Counter[int] = Counter()
    cells: defaultdict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
    damaged = unlabelled = 0
    for name in names:
        try:
            episode = store.read(name)
        except UserError:
            damaged += 1
            continue
        lengths.append(episode.num_steps)
        lumas.append(episode.frames[::_EVERY].mean(axis=(1, 2)) @ _LUMA)
        if labelled(episode):
            moves.append(episode.actions)
            masks, counts = np.unique(episode.keys, return_counts=True)
            actions.update(dict(zip(masks.tolist(), counts.tolist(), strict=True)))
        else:
            unlabelled += 1
        pose = episode.facts.get("pose")
        if pose is not None:
            where = np.floor(np.nan_to_num(pose[:, :2]) / CELL_M).astype(int)
            level = f"{episode.info.get('made_for', store.describe(name).split)} "
            cells[level + level_of(episode.info)].update(map(tuple, where.tolist()))
    return {
        "store": str(store.path),
        "episodes": len(lengths),
        "damaged": damaged,
        "unlabelled": unlabelled,
        "steps": sum(lengths),
        "frames": sum(lengths) + len(lengths),
        "lengths": _lengths(lengths),
        "actions": _actions(store, actions),
        "moves": _moves(moves),
        "coverage": _coverage(cells),
        "brightness": _brightness(lumas),
    }


def _lengths(lengths: list[int]) -> dict[str, Any] | None:
    if not lengths:
        return None
    edges = np.searchsorted(_LENGTHS, lengths)
    names = [f"<={n}" for n in _LENGTHS] + [f">{_LENGTHS[-1]}"]
    classes = {names[i]: int((edges == i).sum()) for i in range(len(names))}
    middle = float(np.median(lengths))
    return {"min": min(lengths), "median": middle, "max": max(lengths), "classes": classes}


def _actions(store: EpisodeStore, masks: Counter[int]) -> dict[str, Any]:
    table, total = store.spec.actions, sum(masks.values())
    texts: Counter[str] = Counter()
    for mask, count in masks.items():
        texts[table.text(table.from_mask(mask)).removeprefix("action: ")] += count
    return {t: {"steps": n, "share": round(n / total, 4)} for t, n in texts.most_common()}


def _moves(moves: list[np.ndarray]) -> dict[str, Any] | None:
    if not sum(map(len, moves)):
        return None
    values = np.concatenate(moves)
    return {
        name: {
            "min": round(float(column.min()), 4),
            "mean": round(float(column.mean()), 4),
            "max": round(float(column.max()), 4),
            "still": round(float((column == 0).mean()), 4),
        }
        for name, column in zip(("dx", "dy", "dyaw"), values.T, strict=True)
    }


def _coverage(cells: dict[str, Counter[tuple[int, int]]]) -> dict[str, Any] | None:
    if not cells:
        return None
    distinct = sum(map(len, cells.values()))
    return {
        "cell_m": CELL_M,
        "levels": len(cells),
        "cells": distinct,
        "cells_per_level": round(distinct / len(cells), 1),
        "visits_per_cell": round(sum(c.total() for c in cells.values()) / distinct, 1),
    }


def _brightness(lumas: list[np.ndarray]) -> dict[str, float] | None:
    if not lumas:
        return None
    values = np.concatenate(lumas)
    low, high = np.percentile(values, (5, 95))
    figures = {"mean": values.mean(), "std": values.std(), "p5": low, "p95": high}
    figures["dark"] = (values < _DARK).mean()
    return {name: round(float(value), 3) for name, value in figures.items()}


def as_text(figures: dict[str, Any]) -> str:
    """Return the figures of `measure` as lines to read, with bars for the shares."""
    lines = [
        f"{'store':<11} {figures['store']}",
        f"{'episodes':<11} {figures['episodes']} ({figures['unlabelled']} unlabelled, "
        f"{figures['damaged']} damaged and left out)",
        f"{'frames':<11} {figures['frames']} in {figures['steps']} steps",
    ]
    if lengths := figures["lengths"]:
        lines.append(
            f"{'lengths':<11} {lengths['min']} to {lengths['max']} steps, "
            f"median {lengths['median']:g}"
        )
        for name, count in lengths["classes"].items():
            lines.append(_bar(name, count, count / figures["episodes"]))
    lines.append(f"{'actions':<11} {len(figures['actions'])} different combinations of keys")
    for text, entry in list(figures["actions"].items())[:16]:
        lines.append(_bar(text, entry["steps"], entry["share"]))
    for name, column in (figures["moves"] or {}).items():
        unit = "degrees" if name == "dyaw" else "m"
        lines.append(
            f"{name:<11} {column['min']:+.2f} to {column['max']:+.2f} {unit} per step, mean "
            f"{column['mean']:+.3f}, zero in {100 * column['still']:.1f} %"
        )
    if seen := figures["coverage"]:
        lines.append(
            f"{'coverage':<11} {seen['cells']} squares of {seen['cell_m']:g} m in "
            f"{seen['levels']} levels ({seen['cells_per_level']} a level, each seen "
            f"{seen['visits_per_cell']} times)"
        )
    else:
        lines.append(f"{'coverage':<11} unknown: the episodes have no poses")
    if light := figures["brightness"]:
        lines.append(
            f"{'brightness':<11} mean {light['mean']:.1f} of 255, 5 % below {light['p5']:.1f}, "
            f"5 % above {light['p95']:.1f}, {100 * light['dark']:.1f} % dark"
        )
    return "\n".join(lines)


def _bar(name: str, count: int, share: float) -> str:
    return f"  {name:<18} {count:>8} {100 * share:5.1f} % {'#' * round(40 * share)}".rstrip()
