"""The controller dies whenever a node prepares a change beside what serves: nobody notices."""

import json
from functools import partial

import pytest

from controller.scheduler.decider import Scheduler
from controller.twin.hands import Shape
from controller.twin.node import SimNode
from controller.twin.run import Plan, Submission, Twin
from controller.twin.usecases import chain

LOOK_MS = 50
DOWN_MS = 300
BACK_MS = 2500
"""A node says its birth after a second, and again when it is asked; the anchor grants at once."""


class Interrupted(Twin):
    """Kills the controller once in each change, and looks at routes when it is back."""

    def __init__(self, seed: int, plan: Plan) -> None:
        super().__init__(seed, plan)
        self.struck: list[tuple[str, int]] = []
        self.kept: list[bool] = []
        self.world.after(LOOK_MS, self._look_at_nodes)

    def submit(self, number: int, version: int = 0) -> None:
        """Submit a use case, or other programs for its tasks."""
        document = chain(number, self.plan.steps, version)
        self.operate("usecase.submit", Submission(json.dumps(document)))

    def _look_at_nodes(self) -> None:
        self.world.after(LOOK_MS, self._look_at_nodes)
        for node in [one for one in self.nodes.values() if one.alive]:
            for task, held in node.core.tasks.held.items():
                change = held.assign.service, held.assign.generation
                if held.serving_epoch and change not in self.struck and self.head.alive:
                    self.struck.append(change)
                    self.head.crash_now(DOWN_MS)
                    epochs = held.serving_epoch, held.assign.epoch
                    check = partial(self._watch_route, node, task, epochs, len(self.struck))
                    self.world.after(DOWN_MS + BACK_MS, check)

    def _watch_route(self, node: SimNode, task: str, epochs: tuple[int, int], strikes: int) -> None:
        """See whether all is as it was, if the node is not done and nothing else has happened."""
        held = node.core.tasks.held[task]
        serving, preparing = epochs
        if held.serving_epoch != serving or len(self.struck) != strikes:
            return
        [scheduler] = [one for one in self.head.deciders.values() if isinstance(one, Scheduler)]
        plans = [route.plan for route in scheduler.serving.routes.values()]
        steps = [(one.task, one.node, one.epoch) for plan in plans if plan for one in plan.steps]
        self.kept.append((task, node.name, serving) in steps and held.assign.epoch == preparing)


@pytest.mark.parametrize("seed", range(4))
def test_a_controller_that_dies_in_a_change_goes_on_with_what_serves(seed: int) -> None:
    shape = Shape(start_ms=4000)
    plan = Plan(nodes=4, services=3, seconds=40, quiet_seconds=40, changes=3, shape=shape)
    twin = Interrupted(seed, plan)
    outcome = twin.run()
    assert outcome.unanswered == 0
    assert len(twin.kept) > 1, "there were changes to die in"
    assert all(twin.kept)
