"""What every part of a decider works with in a turn: its name, the time, the output."""

from msgspec import Struct

from controller.decider import Answer, Output, Record, Send, Target, Timer, ToRole, View
from protocols.messages import Body


class Desk:
    """The time of this turn, and what shall leave the role when it ends."""

    def __init__(self, name: str, unix_offset_ms: int | None = None) -> None:
        self.name = name
        self.unix_offset_ms = unix_offset_ms
        self.now_ms = 0
        self.output = Output()

    def begin(self, now_ms: int) -> None:
        """Begin a turn with an empty output."""
        self.now_ms = now_ms
        self.output = Output()

    @property
    def unix_ms(self) -> int:
        """The wall clock's time of this turn, for people; 0: it is not known."""
        return 0 if self.unix_offset_ms is None else self.now_ms + self.unix_offset_ms

    def tell(self, to: Target, body: Body, cause: str, tenant: str = "default") -> None:
        """Say something once the records of this turn are durable."""
        self.output.sends.append(Send(to, body, cause, tenant))

    def tell_early(self, role: str, body: Body, cause: str, tenant: str = "default") -> None:
        """Say something to another role that promises nothing, before the records are durable."""
        self.output.early.append(Send(ToRole(role), body, cause, tenant))

    def tell_role(self, role: str, body: Body, cause: str, tenant: str = "default") -> None:
        """Say something to another role."""
        self.tell(ToRole(role), body, cause, tenant)

    def keep(self, kind: str, key: str, value: Struct | None, cause: str) -> None:
        """Make the newest state of something durable; None: it is gone."""
        self.output.records.append(Record(kind, key, value, cause))

    def learn(self, kind: str, key: str, value: Struct, cause: str) -> None:
        """Make durable what somebody has told and would tell again; nothing waits for it."""
        self.output.learnt.append(Record(kind, key, value, cause))

    def show(self, kind: str, key: str, value: Struct | None) -> None:
        """Show people the newest state of something; None: it is gone."""
        self.output.views.append(View(kind, key, value))

    def wake(self, key: str, at_ms: int | None) -> None:
        """Set the timer of this key, or cancel it."""
        self.output.timers.append(Timer(key, at_ms))

    def answer(self, answer: Answer) -> None:
        """Answer an operation."""
        self.output.answers.append(answer)
