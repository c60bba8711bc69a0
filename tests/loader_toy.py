"""Something for processes to make: they have to be able to import it."""

import os

from worldmodel.errors import UserError


def squared(number: int) -> tuple[int, int]:
    """Return the square, and who made it."""
    if number == 3:
        raise UserError("number three")
    return number * number, os.getpid()
