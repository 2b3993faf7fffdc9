"""The scenario runs on the cells of the whole-loop tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
for near in ("loop", "trust"):
    sys.path.insert(0, str(Path(__file__).parent.parent / near))
