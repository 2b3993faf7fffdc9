"""Services that do nothing, of one task each: what is measured is who moves them."""

from typing import Final

from benchmarks.harness.cell import Cell

SERVICES_PER_USE_CASE: Final = 16
TASK: Final = """
[[services]]
name = "{name}"
kind = "computing"
spares = 1
outputs = {{ y = "work.y" }}
[[services.tasks]]
name = "work"
executor = "wasm"
artifact = {{ digest = "{digest}", size_bytes = {size} }}
limits = {{ memory_bytes = 1048576 }}
demand = {{ cpu_percent = 0 }}
{nodes}inputs = {{ x = {{ from = "request.x", dtype = "uint8", shape = [-1] }} }}
outputs = {{ y = {{ dtype = "uint8", shape = [-1] }} }}
"""
GUEST: Final = """
(module
  (memory (export "memory") 1)
  (func (export "tona_alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "tona_run") (param i32 i32 i32 i32) (result i32) (i32.const 0)))
"""


async def submit(cell: Cell, count: int, node: str, *others: str) -> None:
    """Submit so many services to an idle node and wait until all of them run there.

    With `others` they may run on these beside it and nowhere else.
    """
    from wasmtime import wat2wasm  # noqa: PLC0415 - an executor's library, for this alone

    code = bytes(wat2wasm(GUEST))
    digest = await cell.put(code, "nothing.wasm")
    await cell.idle(node)
    named = ", ".join(f'"{one}"' for one in (node, *others))
    nodes = f"nodes = [{named}]\n" if others else ""
    for at in range(0, count, SERVICES_PER_USE_CASE):
        tasks = [
            TASK.format(name=f"s{number}", digest=digest, size=len(code), nodes=nodes)
            for number in range(at, min(count, at + SERVICES_PER_USE_CASE))
        ]
        await cell.call("usecase.submit", document=f'name = "u{at}"\n' + "".join(tasks))
    await cell.serving(count)
    tasks = await cell.call("task.list")
    elsewhere = [one.spec.task for one in tasks if one.node != node]
    assert not elsewhere, f"not on {node}: {', '.join(elsewhere)}"
