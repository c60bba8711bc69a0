"""Write the action tables of docs/worlds.md anew from the presets: `python docs/make_tables.py`.

A table stands between `<!-- table NAME -->` and `<!-- end -->`. No environment is needed.
"""

import re
from pathlib import Path

from worldmodel.actions import ActionRow
from worldmodel.envs.gym_config import GymConfig, load_preset

PAGE = Path(__file__).with_name("worlds.md")
_TABLE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """Return the page with all its tables made anew."""
    return _TABLE.sub(lambda m: f"{m[1]}{table_of(load_preset(m[2]))}{m[3]}", page)


def table_of(config: GymConfig) -> str:
    """Return the table of a world's keys in Markdown."""
    lines = ["| key | does | as text | native |", "| --- | --- | --- | --- |"]
    for entry in config.rows:
        row = entry.row
        said = ", ".join(row.phrases)
        lines.append(f"| `{row.key}` | {row.meaning}{_moved(row)} | {said} | `{entry.native}` |")
    return "\n".join(lines) + "\n"


def _moved(row: ActionRow) -> str:
    parts = [f"{row.dx:+g} m"] * bool(row.dx) + [f"{row.dyaw:+g}°"] * bool(row.dyaw)
    return f" ({', '.join(parts)})" if parts else ""


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
