"""Exit codes: who has to act, as a number that scripts can read."""

from typing import Final

from protocols.errors import Blame, PeerError, TonaError, UserError
from protocols.folder import FolderInUse

OK: Final = 0
USAGE: Final = 2
"""A wrong argument, file or configuration here."""
UNAVAILABLE: Final = 3
"""No controller, nothing in time, another thing under way, it does not run or is not installed."""
REFUSED: Final = 4
"""Refused by the controller or a node, as for what is not there; it will be refused again."""
BUG: Final = 70
INTERRUPTED: Final = 130

ISSUES: Final = "report it with the line above and the output of `tona doctor --json`"


class RefusedByController(TonaError):
    """The controller refused what was asked of it."""

    blame = Blame.USER


def exit_code(error: TonaError) -> int:
    """Return the exit code of a failure."""
    if isinstance(error, RefusedByController | PeerError):
        return REFUSED
    if isinstance(error, FolderInUse):
        return UNAVAILABLE
    if isinstance(error, UserError):
        return USAGE
    match error.blame:
        case Blame.USER | Blame.PEER:
            return REFUSED
        case Blame.ENVIRONMENT:
            return UNAVAILABLE
        case Blame.OURS:
            return BUG
