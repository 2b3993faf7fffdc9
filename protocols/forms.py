"""The forms of a task: programs that do the same, of which the network takes what costs least."""

from typing import Final

from protocols.messages.hierarchy import TaskSpec
from protocols.messages.quality import Variant

ACCURACY: Final = "accuracy_percent"


def is_form(spec: TaskSpec, variant: Variant) -> bool:
    """Whether a variant is as accurate as the task's own program, as far as authors say.

    Where the task declares an accuracy, a variant without one is not known to be a form.
    """
    own = next((one.number for one in spec.declared if one.indicator == ACCURACY), None)
    if own is None:
        return True
    return variant.accuracy_percent is not None and variant.accuracy_percent >= own


def has_choice(spec: TaskSpec) -> bool:
    """Whether there is anything to choose for a task beside its node."""
    several = len(spec.manifest.providers) > 1
    return bool(spec.variants) or several or spec.deviceless is not None
