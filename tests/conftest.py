"""What every test runs under.

No test of properties is timed: how long an example takes says how busy the machine is. Examples are
few by default, which finds over many runs what many find in one; EXAMPLES=10 tries ten times
as many, and so many seeds of the simulator. Where a failure was caused is not looked for line by
line: before Python 3.12 that takes longer than a test may.

A test that fails tells what its processes last said.

Processes that tests start load byte code, whatever the environment says of writing it: to compile
at every start costs about as much as all that most of them do.
"""

import os
import sys
from collections.abc import Generator
from typing import Final

import pytest
from hypothesis import Phase, settings
from last_words import sections
from thorough import TIMES

EXAMPLES: Final = 30

settings.register_profile(
    "unhurried",
    settings.default,
    deadline=None,
    max_examples=EXAMPLES * TIMES,
    phases=set(Phase) - {Phase.explain},
)
settings.load_profile("unhurried")

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

SINCE_S: Final = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    since_s = item.stash.setdefault(SINCE_S, call.start)
    if report.failed:
        base = item.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined] - pytest has no other way
        own = getattr(item, "funcargs", {}).get("tmp_path")
        report.sections.extend(sections(base, own, since_s))
    return report
