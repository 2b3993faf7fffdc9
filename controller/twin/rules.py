"""The rules that a run must keep, by name, and the error that says which one was broken."""

from enum import StrEnum


class Rule(StrEnum):
    """What must hold."""

    LOST = "lost"
    """Every accepted job ends, done or failed with a reason."""
    DOUBLED = "doubled"
    """No job ends twice, and nobody gets two different answers."""
    CAPACITY = "capacity"
    """No node holds more than it may give to tasks."""
    RESERVATION = "reservation"
    """No anchor grants a node more than it has."""
    EPOCH = "epoch"
    """No epoch falls, none serves on two nodes."""
    ENVELOPE = "envelope"
    """A scheduler acts inside its newest grant."""
    ESCALATION = "escalation"
    """A scheduler hands up what its envelope cannot hold."""
    JOURNAL = "journal"
    """Nothing is acknowledged before it is durable."""
    INCARNATION = "incarnation"
    """No word of an older connection counts."""
    CONSTRAINT = "constraint"
    """Privacy and security hold wherever a task is sent."""
    MEMORY = "memory"
    """What a run has left in a task's memory is there wherever the task goes."""
    OWNER = "owner"
    """A task has one scheduler that may act on it, or none for a bounded while."""
    UNDUE = "undue"
    """A node that lives and can reach a cell is served again within a bounded while."""
    RESTART = "restart"
    """A healthy copy runs on through every handover of its node."""
    FORGERY = "forgery"
    """A handover message that is forged or old changes nothing."""
    CONVERGENCE = "convergence"
    """Once faults stop, everything runs or says why not, and nothing is left over."""
    FOUND = "found"
    """What has settled is found by its clients."""
    BUG = "bug"
    """A decider stumbled."""


class BrokenRule(AssertionError):
    """A checker has found what must never be; the text tells seed, time and what."""

    def __init__(self, rule: Rule, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
