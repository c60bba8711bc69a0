"""Write the action tables of docs/worlds.md anew: `python docs/make_tables.py`.

A table stands between `<!-- table NAME -->` and `<!-- end -->`. No environment is needed.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from worldmodel.actions import ActionRow
from worldmodel.envs.gym_config import GymConfig, load_preset
from worldmodel.envs.habitat.config import NATIVE, HabitatConfig, action_table

PAGE = Path(__file__).with_name("worlds.md")
_TABLE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """Return the page with all its tables made anew."""
    return _TABLE.sub(lambda m: f"{m[1]}{_table(m[2])}{m[3]}", page)


def _table(name: str) -> str:
    return habitat_table() if name == "habitat" else table_of(load_preset(name))


def table_of(config: GymConfig) -> str:
    """Return the table of a world's keys in Markdown."""
    return _lines("native", [(entry.row, f"`{entry.native}`") for entry in config.rows])


def habitat_table() -> str:
    """Return the table of the Habitat world's keys in Markdown."""
    rows = action_table(HabitatConfig()).rows
    native = [f"`{NATIVE[row.key]}`" if row.key in NATIVE else "" for row in rows]
    return _lines("with `control: discrete`", list(zip(rows, native, strict=True)))


def _lines(last: str, rows: Sequence[tuple[ActionRow, str]]) -> str:
    lines = [f"| key | does | as text | {last} |", "| --- | --- | --- | --- |"]
    for row, native in rows:
        said = ", ".join(row.phrases)
        lines.append(f"| `{row.key}` | {row.meaning}{_moved(row)} | {said} | {native} |")
    return "\n".join(lines) + "\n"


def _moved(row: ActionRow) -> str:
    metres = row.dx or row.dy
    parts = [f"{metres:+g} m"] * bool(metres) + [f"{row.dyaw:+g}°"] * bool(row.dyaw)
    return f" ({', '.join(parts)})" if parts else ""


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
