"""Write the grammar's tables in docs/data.md anew: `python docs/make_grammar.py`."""

import re
from pathlib import Path

from worldmodel.envs import grammar
from worldmodel.envs.doom.levels import KINDS

PAGE = Path(__file__).with_name("data.md")
_TABLES = re.compile(r"(<!-- grammar -->\n).*?(<!-- end of grammar -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """Return the page with its tables made anew."""
    return _TABLES.sub(lambda m: f"{m[1]}{productions()}\n{combinations()}{m[2]}", page)


def productions() -> str:
    """Return the table of all productions in Markdown."""
    lines = ["| kind | production | trained on | held out: rearranged; with a new word |"]
    lines.append("| --- | --- | --- | --- |")
    for kind in ("instructions", "captions", "questions"):
        for name, forms in getattr(grammar, kind.upper()).items():
            told = " / ".join(forms.seen), "; ".join(forms.held_out)
            lines.append(f"| {kind[:-1]} | `{name}` | {told[0]} | {told[1]} |")
    return "\n".join(lines) + "\n"


def combinations() -> str:
    """Return the table of what is reserved of doom's objects in Markdown."""
    lines = ["| relation | reserved with |", "| --- | --- |"]
    for relation in grammar.RELATIONS:
        things = [kind.name for kind in KINDS if grammar.reserved(relation, kind.name)]
        lines.append(f"| `{relation}` | {', '.join(things)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
