"""NVIDIA's management library, imported only on machines whose profile asks for it."""

from types import ModuleType
from typing import Any

from msgspec import Struct

_MILLIWATT = 0.001


class GpuState(Struct, frozen=True):
    """What a GPU says now; None where this model does not say it."""

    load_percent: float | None = None
    memory_used_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None


class Nvml:
    """The library, initialised. One per process."""

    def __init__(self, library: ModuleType | Any) -> None:
        """Initialise. Raises the library's NVMLError when driver or GPU do not answer."""
        self._library = library
        library.nvmlInit()

    def gpu(self, pci_address: str) -> "Gpu | None":
        """Return the GPU at a PCI address, or None when the driver does not have it."""
        try:
            handle = self._library.nvmlDeviceGetHandleByPciBusId(pci_address.encode())
        except self._library.NVMLError:
            return None
        return Gpu(self._library, handle)

    def close(self) -> None:
        """Let the driver go."""
        try:
            self._library.nvmlShutdown()
        except self._library.NVMLError:
            return  # the driver has gone first


class Gpu:
    """One GPU. What it cannot tell is None; a GPU that fell off the bus tells nothing."""

    def __init__(self, library: ModuleType | Any, handle: object) -> None:
        self._library = library
        self._handle = handle

    @property
    def name(self) -> str:
        """The model's name, or empty."""
        name = self._ask(self._library.nvmlDeviceGetName)
        return name.decode() if isinstance(name, bytes) else name or ""

    @property
    def memory_bytes(self) -> int | None:
        """The memory it has."""
        memory = self._ask(self._library.nvmlDeviceGetMemoryInfo)
        return None if memory is None else int(memory.total)

    def read(self) -> GpuState:
        """Return its state now."""
        library = self._library
        load = self._ask(library.nvmlDeviceGetUtilizationRates)
        memory = self._ask(library.nvmlDeviceGetMemoryInfo)
        temperature = self._ask(library.nvmlDeviceGetTemperature, library.NVML_TEMPERATURE_GPU)
        power = self._ask(library.nvmlDeviceGetPowerUsage)
        return GpuState(
            load_percent=None if load is None else float(load.gpu),
            memory_used_bytes=None if memory is None else int(memory.used),
            temperature_c=None if temperature is None else float(temperature),
            power_w=None if power is None else power * _MILLIWATT,
        )

    def _ask(self, question: Any, *arguments: object) -> Any:
        try:
            return question(self._handle, *arguments)
        except self._library.NVMLError:
            return None


def open_nvml() -> tuple[Nvml | None, str]:
    """Return the library, or None and a sentence that says why not and what to do."""
    try:
        import pynvml  # noqa: PLC0415 - megabytes that only machines with an NVIDIA GPU pay
    except ImportError:
        return None, (
            "The NVIDIA GPU is not read: nvidia-ml-py is missing; "
            "install it with pip install 'tona-edge[gpu]'."
        )
    try:
        return Nvml(pynvml), ""
    except pynvml.NVMLError as error:
        return None, f"The NVIDIA GPU is not read: NVML says '{error}'; is the driver loaded?"
