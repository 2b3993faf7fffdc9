"""Every record that a role keeps has a form in the store."""

import ast
from pathlib import Path

import controller
from controller import accounts, records
from controller.store.kinds import TYPES


def _kept() -> set[str]:
    """Return the names of the kinds that code of ours says `desk.keep(KIND, ...)` with."""
    found: set[str] = set()
    for path in Path(controller.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "keep"
            first = node.args[0] if isinstance(node, ast.Call) and node.args else None
            if called and isinstance(first, ast.Name) and first.id.isupper():
                found.add(first.id)
    return found


def test_whatever_is_kept_can_be_stored() -> None:
    kept = _kept()
    assert {"TASK", "NODE", "HANDOVER"} <= kept
    for name in kept:
        kind = getattr(records, name, None) or getattr(accounts, name)
        assert kind in TYPES, f"controller/store/kinds.py does not know {name}"
