"""What a person or an application holds: the SDK and the command line.

    async with tona.connect("http://127.0.0.1:8600") as client:
        result = await client.invoke("reading", {"image": data}, deadline_s=5)
        print(result.text("text"))

Names are loaded when they are first used, so that the command line starts quickly.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from protocols.manifest import Dtype
    from tona.blocking import Client, connect_blocking
    from tona.client import AsyncClient, connect
    from tona.errors import (
        BadInput,
        CannotConnect,
        ClientClosed,
        DeadlineExceeded,
        InvocationError,
        Refused,
        ServiceUnavailable,
        TaskFailed,
    )
    from tona.job_client import Job
    from tona.values import Result, Tensor

__all__ = [
    "AsyncClient",
    "BadInput",
    "CannotConnect",
    "Client",
    "ClientClosed",
    "DeadlineExceeded",
    "Dtype",
    "InvocationError",
    "Job",
    "Refused",
    "Result",
    "ServiceUnavailable",
    "TaskFailed",
    "Tensor",
    "connect",
    "connect_blocking",
]

_ERRORS: Final = (
    "BadInput",
    "CannotConnect",
    "ClientClosed",
    "DeadlineExceeded",
    "InvocationError",
    "Refused",
    "ServiceUnavailable",
    "TaskFailed",
)
_WHERE: Final = {
    "AsyncClient": "tona.client",
    "Client": "tona.blocking",
    "Dtype": "protocols.manifest",
    "Job": "tona.job_client",
    "Result": "tona.values",
    "Tensor": "tona.values",
    "connect": "tona.client",
    "connect_blocking": "tona.blocking",
    **dict.fromkeys(_ERRORS, "tona.errors"),
}


def __getattr__(name: str) -> Any:
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module 'tona' has no attribute {name!r}")
    return getattr(import_module(where), name)
