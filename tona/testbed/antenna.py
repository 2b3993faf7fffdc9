"""A node's radio as the testbed plays it: links follow a trace, and one radio is at one cell."""

import asyncio
from pathlib import Path

from tona.testbed.bed import Ground
from tona.testbed.radio import Radio
from tona.testbed.replay import Step


class Antenna:
    """The links of one node, from `begin` on."""

    def __init__(self, ground: Ground, node: str, folder: Path) -> None:
        """Keep what the device agent meets in a folder."""
        self.node = node
        self.at = ""
        """Where its radio is, if it has one only; empty while it switches."""
        self._ground = ground
        self.cells = ground.spec.cell_names
        self.single = ground.spec.radios(node) == 1
        self._switch_ms = ground.spec.switch_ms
        self._step: Step | None = None
        self._preferred = ""
        self._wanted = ""
        self._switching: asyncio.Task[None] | None = None
        self.radio = Radio(folder, self.tune)

    def begin(self, cell: str, step: Step) -> None:
        """Be at a cell, under the conditions of a step."""
        self.at = self._wanted = cell
        self.show(step)

    def show(self, step: Step) -> None:
        """Have the conditions of a step from now on."""
        self._step = step
        links = step.carried(self.at) if self.single else step.links
        up = [cell for cell, one in links.items() if one.up]
        for cell, one in links.items():
            self._ground.become(self.node, cell, one)
        self.radio.say(step.signals)
        best = step.serving if step.serving in up else next(iter(up), "")
        if best and best != self._preferred:
            self._preferred = best
            self._ground.prefer(self.node, best)

    def tune(self, cell: str) -> None:
        """Bring a single radio to a cell that it hears; with two there is nothing to do."""
        step = self._step
        if self.single and (step is None or cell not in step.signals):
            self.radio.came_to("")
        elif not self.single or cell == self.at:
            self.radio.came_to(cell)
        else:
            self._wanted = cell
            if self._switching is None:
                self._switching = asyncio.create_task(self._switch(), name=f"tune {self.node}")

    async def stop(self) -> None:
        """End; safe before `begin`."""
        if self._switching is not None:
            self._switching.cancel()
            await asyncio.wait({self._switching})
        self.radio.stop()

    async def _switch(self) -> None:
        try:
            while self.at != self._wanted:
                goal, self.at = self._wanted, ""
                # First: the air times the switch from here.
                if self._step is not None:
                    link = self._step.links[goal]
                    self._ground.arrive(self.node, goal, link, self._switch_ms)
                self._again()
                await asyncio.sleep(self._switch_ms / 1000)
                self.at = goal
                self._again()
            self.radio.came_to(self.at)
        finally:
            self._switching = None

    def _again(self) -> None:
        if self._step is not None:
            self.show(self._step)
