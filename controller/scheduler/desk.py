"""What every part of the scheduler works with in a turn: its name, the time, the output."""

from msgspec import Struct

from controller.decider import Answer, Output, Record, Send, Target, Timer, View
from protocols.messages import Body


class Desk:
    """The time of this turn, and what shall leave the scheduler when it ends."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.now_ms = 0
        self.output = Output()

    def begin(self, now_ms: int) -> None:
        """Begin a turn with an empty output."""
        self.now_ms = now_ms
        self.output = Output()

    def tell(self, to: Target, body: Body, cause: str, tenant: str = "default") -> None:
        """Say something once the records of this turn are durable."""
        self.output.sends.append(Send(to, body, cause, tenant))

    def wake(self, key: str, at_ms: int) -> None:
        """Set the timer of this key."""
        self.output.timers.append(Timer(key, at_ms))

    def keep(self, kind: str, key: str, value: Struct | None, cause: str) -> None:
        """Make something durable."""
        self.output.records.append(Record(kind, key, value, cause))

    def show(self, kind: str, key: str, value: Struct | None) -> None:
        """Show people the newest state of something."""
        self.output.views.append(View(kind, key, value))

    def answer(self, answer: Answer) -> None:
        """Answer an operation."""
        self.output.answers.append(answer)
