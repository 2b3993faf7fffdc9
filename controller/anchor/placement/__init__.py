"""Placement: a frozen snapshot and the tasks of a service in, one plan for all of them out."""

from controller.anchor.placement.facts import NodeFacts, Request, Snapshot
from controller.anchor.placement.planner import place

__all__ = ["NodeFacts", "Request", "Snapshot", "place"]
