"""What an application catches: one class for each thing it can do about a failure.

Each carries `blame` (who has to act), `code`, and the task and node where it happened, if any.
"""

from typing import Final

from protocols.errors import Blame, EnvironmentFailure, TonaError, UserError
from protocols.messages.invocation import Failure, FailureCode


class CannotConnect(EnvironmentFailure):
    """The controller or its broker could not be reached."""


class ClientClosed(UserError):
    """The client was closed, or was never opened."""


class InvocationError(TonaError):
    """A request was not served; `failure` holds every detail."""

    def __init__(self, failure: Failure) -> None:
        where = f" (task {failure.task} on {failure.node})" if failure.task else ""
        super().__init__(failure.text + where)
        self.failure = failure
        self.blame = failure.blame

    @property
    def code(self) -> FailureCode:
        """Why the request was not served."""
        return self.failure.code


class BadInput(InvocationError):
    """The inputs are not what the service takes: change them."""


class ServiceUnavailable(InvocationError):
    """The service is not served now: submit it, or try later."""


class DeadlineExceeded(InvocationError):
    """No answer came in time: give more time, or ask for a service with a tighter bound."""


class Refused(InvocationError):
    """The cell has no room for the request now, or it exceeds a limit of the service."""


class TaskFailed(InvocationError):
    """A task broke while it ran the request, gave what breaks a check, or a value was not moved."""


_CLASSES: Final[dict[FailureCode, type[InvocationError]]] = {
    FailureCode.BAD_INPUT: BadInput,
    FailureCode.NO_SERVICE: ServiceUnavailable,
    FailureCode.NOT_READY: ServiceUnavailable,
    FailureCode.STALE: ServiceUnavailable,
    FailureCode.NODE_LOST: ServiceUnavailable,
    FailureCode.BUSY: Refused,
    FailureCode.SHED: Refused,
    FailureCode.LIMIT: Refused,
    FailureCode.CANCELLED: Refused,
    FailureCode.DEADLINE: DeadlineExceeded,
    FailureCode.EXECUTOR: TaskFailed,
    FailureCode.FETCH: TaskFailed,
    FailureCode.CHECK: TaskFailed,
}


def error_of(failure: Failure) -> InvocationError:
    """Return the error that an application gets for a failure."""
    return _CLASSES[failure.code](failure)


def bad_input(text: str) -> BadInput:
    """Return the error for inputs that cannot even be sent."""
    return BadInput(Failure(FailureCode.BAD_INPUT, Blame.USER, text, retryable=False))
