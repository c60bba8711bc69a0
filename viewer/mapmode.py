"""The map while it is open: what is selected on it, and what keys and clicks do."""

import pygame

from worldmodel.viewer.commands import Chart, Jump, Pause
from worldmodel.viewer.keys import Binding, Keymap
from worldmodel.viewer.layout import Layout
from worldmodel.viewer.mapview import map_places
from worldmodel.viewer.outline import Stop, move
from worldmodel.viewer.playable import Playable
from worldmodel.viewer.snapshot import Snapshot


class MapMode:
    """An open map; time stands still as long.

    Args:
        engine: is asked for the outline of the tree.
        now: what is on screen as the map opens.

    Attributes:
        open: whether the map is still open.
        node: the node that is selected.
    """

    def __init__(self, engine: Playable, now: Snapshot) -> None:
        assert now.now is not None
        self.open = True
        self.node = now.now.node
        self._resume = now.status == "playing"
        engine.post(Chart(True))

    def selected(self, stops: tuple[Stop, ...]) -> int | None:
        """Return the index of the selected stop; None as long as there is no outline."""
        at = next((i for i, stop in enumerate(stops) if stop.node == self.node), None)
        if at is None and stops:
            at = next(i for i, stop in enumerate(stops) if stop.here)
            self.node = stops[at].node
        return at

    def key(self, engine: Playable, keymap: Keymap, name: str, char: str = "") -> Binding | None:
        """Take a key; returns a command that is none of the map's own.

        Arrows (and the keys that move so in the world) look around, Enter goes there.
        """
        binding = keymap.command(name, char)
        stops = engine.snapshot.chart
        selected = self.selected(stops)
        pressed = keymap.action(name)
        way = next((arrow for arrow, key in keymap.ways.items() if key == pressed), name)
        if name == "escape" or (binding and binding.name == "map"):
            self._close(engine, self._resume)
        elif selected is not None and way in ("left", "right", "up", "down"):
            self.node = stops[move(stops, selected, way)].node
        elif selected is not None and name in ("return", "enter"):
            self._travel(engine)
        elif binding and binding.name not in ("quit", "say"):
            return binding
        return None

    def click(
        self, engine: Playable, at: tuple[int, int], layout: Layout, drawn: Snapshot, aspect: float
    ) -> None:
        """Select the frame that was clicked; go there if it was selected already."""
        selected = self.selected(drawn.chart)
        if selected is None:
            return
        size = pygame.display.get_window_size()
        places = map_places(size, layout, drawn.chart, selected, aspect)
        for stop, place in zip(drawn.chart, places.cards, strict=True):
            if place.collidepoint(at) and places.chart.collidepoint(at):
                again = stop.node == self.node
                self.node = stop.node
                if again:
                    self._travel(engine)

    def _travel(self, engine: Playable) -> None:
        engine.post(Jump(self.node))
        self._close(engine, resume=False)

    def _close(self, engine: Playable, resume: bool) -> None:
        self.open = False
        engine.post(Chart(False))
        if resume:
            engine.post(Pause(False))
