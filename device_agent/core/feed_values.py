"""From what a source gives to the values of a request; pure functions."""

import struct
from math import nan
from typing import Final

from device_agent.core.pictures import decimate
from protocols.errors import MalformedFrame
from protocols.manifest import Dtype, Port, accepts, tensor_bytes
from protocols.messages.invocation import Tensor, Value
from protocols.messages.quality import Source
from protocols.messages.sense import LoadReport
from protocols.packing import unpack

LOAD_SHAPE: Final = (8,)

_LOAD = struct.Struct("<8f")


def fitted(source: Source, value: Value, decimation: int) -> Value:
    """Return a value of a topic as its source declares it. Raises MalformedFrame."""
    dense = unpack(value) if isinstance(value, Tensor) else value
    if not accepts(Port("x", source.dtype, source.shape), dense.dtype, dense.shape):
        raise MalformedFrame("a published value is not what its source declares")
    if not isinstance(dense, Tensor):
        return dense
    if len(dense.data) != tensor_bytes(dense.dtype, dense.shape):
        raise MalformedFrame("a published value is not as long as its shape says")
    shape, data = decimate(dense.dtype, dense.shape, dense.data, decimation)
    return Tensor(dense.dtype, shape, data)


def load_vector(load: LoadReport) -> Tensor:
    """Return the built-in sensor `load`: eight float32, NaN where the machine has no sensor.

    CPU, memory used, CPU, memory and I/O pressure in percent; temperature in degrees Celsius; power
    in watts; requests under way.
    """
    memory = load.memory_used_bytes + load.memory_available_bytes
    pressure = load.pressure
    stalls = (
        (pressure.cpu_percent, pressure.memory_percent, pressure.io_percent)
        if pressure is not None
        else (nan, nan, nan)
    )
    figures = (
        load.cpu_percent,
        100.0 * load.memory_used_bytes / memory if memory else nan,
        *stalls,
        nan if load.temperature_c is None else load.temperature_c,
        nan if load.power_w is None else load.power_w,
        float(load.queue),
    )
    return Tensor(Dtype.FLOAT32, LOAD_SHAPE, _LOAD.pack(*figures))
