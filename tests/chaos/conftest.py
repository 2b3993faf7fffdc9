"""The chaos program is a script beside its tests."""

import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
for folder in ("loop", "deployments", "chaos"):
    sys.path.insert(0, str(TESTS / folder))
