"""Hold the size of rooms: a file ends at 600 lines, a function at 60; tests may be longer."""

import ast
import sys
from pathlib import Path
from typing import Final

FILE_LINES: Final = 600
FUNCTION_LINES: Final = 60
PACKAGES: Final = ("controller", "device_agent", "firmware_profiles", "protocols", "tona")
OTHERS: Final = ("benchmarks", "examples", "tests", "tools")


def findings(root: Path) -> list[str]:
    """Return one sentence for each room that has grown too large."""
    found: list[str] = []
    for folder in (*PACKAGES, *OTHERS):
        for path in sorted((root / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            where = path.relative_to(root)
            lines = text.count("\n")
            if lines > FILE_LINES:
                found.append(f"{where}: {lines} lines, the end is {FILE_LINES}")
            if folder == "tests":
                continue
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    length = (node.end_lineno or node.lineno) - node.lineno + 1
                    if length > FUNCTION_LINES:
                        found.append(
                            f"{where}:{node.lineno}: {node.name} has {length} lines, "
                            f"the end is {FUNCTION_LINES}"
                        )
    return found


def main() -> int:
    """Print the findings; exit 1 when there are any."""
    found = findings(Path(__file__).resolve().parent.parent)
    for one in found:
        print(one)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
