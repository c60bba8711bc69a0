"""The one error a user sees: a clear sentence, exit code 2, no traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can put right.

    The message says what is wrong, what was expected and what to do. `worldmodel.cli`
    prints it and exits with code 2.
    """


def suggest(name: str, options: Iterable[str]) -> str:
    """Return `' Did you mean X?'` with the nearest option, and the list of all options.

    Meant to be appended to the message of a `UserError` about an unknown name.
    """
    known = sorted(options)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{hint} Known: {', '.join(known) or '(none)'}."
