"""Where an imagination begins: a bundled start, a recorded episode, a picture, a real world."""

from worldmodel.evaluate.scenario import Start
from worldmodel.evaluate.starts import find_start
from worldmodel.viewer.session import Context
from worldmodel.world import WorldSpec


def make_context(start: Start, spec: WorldSpec) -> Context | None:
    """Return the frames that `start` names; None for a bundled start.

    Raises:
        UserError: a picture, store, episode or world that is not there or does not fit.
    """
    given = find_start(start, spec)
    return Context(given.frames, given.actions) if given else None
