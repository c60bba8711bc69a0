"""Replay: recorded episodes as a World that shows what was recorded, and nothing else."""

from collections.abc import Callable

from worldmodel.actions import Action, ActionTable
from worldmodel.errors import UserError
from worldmodel.world import Episode, Step, WorldSpec


def action_at(episode: Episode, step: int, table: ActionTable) -> Action:
    """Return the action of a step of an episode, counted from 0: its keys, or how it moved."""
    if mask := int(episode.keys[step]):
        return table.from_mask(mask)
    dx, dy, dyaw = (float(value) for value in episode.actions[step])
    return Action((), dx, dy, dyaw)


class Replay:
    """Recorded episodes as a World. A step takes the recorded action only: nothing else was seen.

    Args:
        spec: the world that the episodes are from.
        read: gives an episode by its number; a `UserError` where there is none.
    """

    def __init__(self, spec: WorldSpec, read: Callable[[int], Episode]) -> None:
        self.spec = spec
        self._read = read
        self._number = -1
        self._episode: Episode | None = None
        self._at = 0

    @property
    def due(self) -> Action | None:
        """The recorded action of the next step; None at the end of the episode."""
        episode = self._given()
        if self._at == episode.num_steps:
            return None
        return action_at(episode, self._at, self.spec.actions)

    def reset(self, seed: int | None = None) -> Step:
        """Go to the first frame of the episode with the number `seed`; None for the next one.

        Raises:
            UserError: there is no such episode.
        """
        number = self._number + 1 if seed is None else seed
        episode = self._read(number)
        self._number, self._episode, self._at = number, episode, 0
        return self._step("")

    def step(self, action: Action) -> Step:
        """Show the next frame.

        Raises:
            UserError: another action than the recorded one, or none is left.
        """
        due = self.due
        if due is None:
            raise UserError("The recording ended here.")
        if action != due:
            raise UserError("You took over here; the recording knows only what was done then.")
        self._at += 1
        return self._step(self.spec.actions.text(action))

    def close(self) -> None:
        """Forget the episode."""
        self._episode = None

    def _given(self) -> Episode:
        if self._episode is None:
            raise UserError("The replay has no episode yet: call reset() first.")
        return self._episode

    def _step(self, text: str) -> Step:
        episode = self._given()
        facts = {name: values[self._at] for name, values in episode.facts.items()}
        over = self._at == episode.num_steps
        return Step(episode.frames[self._at], truncated=over, facts=facts, text=text)
