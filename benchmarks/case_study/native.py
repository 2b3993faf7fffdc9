"""What the ways without a platform start from: guests compiled for this machine, optimised models.

Made once before anything is measured, as an installation would.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from benchmarks.harness.packages import in_package
from benchmarks.harness.processes import ROOT
from device_agent.executors.programs import ort_api

HERE: Final = Path(__file__).parent / "native"
DRIVING: Final = ROOT / "examples" / "driving"
READING: Final = ROOT / "examples" / "reading"
GUESTS: Final = {
    "decode": READING,
    "crop": READING,
    "text": READING,
    "glance": DRIVING,
    "plate": DRIVING,
    "recent": DRIVING,
    "outlook": DRIVING,
    "project": DRIVING,
    "fuse": DRIVING,
}
COPIES: Final = {"decode": 4, "project": 4}
"""A library has one arena: threads that run the same step have a copy each."""
TABLES: Final = (
    READING / "characters.txt",
    DRIVING / "tables" / "forms.txt",
    DRIVING / "tables" / "stations.f32",
    *(DRIVING / "tables" / f"{side}.camera" for side in ("front", "back", "left", "right")),
)
COMPILE_TIMEOUT_S: Final = 120
FLAGS: Final = ["-std=gnu11", "-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC", "-w"]
"""Without fused multiplications, so that answers are equal to the last bit."""


def make(folder: Path) -> None:
    """Fill a folder. Ends the benchmark with a sentence where there is no compiler."""
    folder.mkdir()
    for name, example in GUESTS.items():
        compile_guest(example / "guests" / f"{name}.c", folder / f"{name}.0.so")
        for copy in range(1, COPIES.get(name, 1)):
            shutil.copy(folder / f"{name}.0.so", folder / f"{name}.{copy}.so")
    for table in TABLES:
        shutil.copy(table, folder)
    models = {
        "detect": in_package("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx"),
        "recognise": in_package("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx"),
        "forecast": DRIVING / "forecaster.onnx",
    }
    for name, path in models.items():
        optimise(path, folder / f"{name}.ort")


def compile_guest(source: Path, target: Path) -> None:
    """Compile a guest for this machine. Ends the benchmark with a sentence where that fails."""
    stb = os.environ.get("STB_INCLUDE", "/usr/include/stb")
    guest = f'-DGUEST="{source}"'
    command = [os.environ.get("CC", "cc"), *FLAGS, f"-isystem{stb}", f"-I{HERE}", guest]
    try:
        subprocess.run(
            [*command, f"-o{target}", str(HERE / "guest.c"), "-lm"],
            check=True,
            capture_output=True,
            text=True,
            timeout=COMPILE_TIMEOUT_S,
        )
    except FileNotFoundError:
        raise SystemExit("benchmark: there is no C compiler: apt install gcc libstb-dev") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"benchmark: {source.name} does not compile: {error.stderr}") from None


def optimise(model: Path, target: Path) -> None:
    """Write the optimised form of a model."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    as_form = {"session.save_model_format": "ORT"}
    ort_api.Runtime().session(str(model), 1, [ort_api.CPU], as_form, save=str(target))
