"""`tona model`: smaller and faster forms of a model, measured on the author's machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from typer import Argument, Option

from protocols.errors import EnvironmentFailure
from tona.cli.context import AsJson, show, show_json, table
from tona.cli.draw import size

if TYPE_CHECKING:
    from tona.variants.study import Figures, Study

app = typer.Typer(help="Models, on the machine of their author.", no_args_is_help=True)


@app.callback()
def model() -> None:
    """Models, on the machine of their author."""


@app.command()
def variants(
    model: Annotated[Path, Argument(help="The model, ONNX.", exists=True, dir_okay=False)],
    data: Annotated[Path, Option(help="FILE.npz, a folder of .npz, or of files for --script.")],
    out: Annotated[Path, Option(help="Folder for the variants and variants.toml.")],
    labels: Annotated[Path | None, Option(help="Lines of NAME, a tab, LABEL.")] = None,
    script: Annotated[
        Path | None, Option(help="Python with prepare(path), label(path), decode(outputs).")
    ] = None,
    metric: Annotated[str, Option(help="auto, top1, sequence, close or exact.")] = "auto",
    calibration: Annotated[
        int, Option(help="Samples to make variants with; they judge none.", min=1)
    ] = 50,
    threads: Annotated[int, Option(help="Of one run.", min=1)] = 1,
    only: Annotated[list[str] | None, Option(help="Make this one; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make smaller and faster variants and measure each beside the original on held-out data."""
    try:
        from tona.variants.samples import read_script  # noqa: PLC0415 - an extra of its own
        from tona.variants.study import Wish, study  # noqa: PLC0415 - as above
    except ImportError as error:
        text = f"making variants needs {error.name}: pip install 'tona-edge[variants]'"
        raise EnvironmentFailure(text) from None
    done = study(
        Wish(
            model, data, out, labels, read_script(script) if script else None,
            metric, calibration, threads, tuple(only or ()),
        )
    )  # fmt: skip
    if as_json:
        show_json(msgspec.json.encode(done))
    else:
        _draw(done, out)


def _draw(done: "Study", out: Path) -> None:
    made = table("FORM", ">ACCURACY", ">AGREES", ">MEAN OFF", ">MAX OFF", ">P50 MS", ">P99 MS",
                 ">SIZE", ">MEMORY", "REMARK")  # fmt: skip
    for one in done.forms:
        made.add_row(*_row(one))
    show(made)
    labels = f"{done.labelled} with a label" if done.labelled else "without labels"
    show(
        f"metric {done.metric}; made with {done.made_with} samples, judged by {done.judged_by} "
        f"others ({labels}); wrote {out / 'variants.toml'}"
    )


def _row(one: "Figures") -> tuple[str, ...]:
    if one.failed:
        return (one.name, *["-"] * 8, one.failed)
    accuracy = "-" if one.accuracy_percent is None else f"{one.accuracy_percent:.1f} %"
    remark = f"{one.worse_than} is as good or better in all" if one.worse_than else one.about
    return (
        one.name, accuracy, f"{one.agreement_percent:.1f} %", f"{one.deviation_mean:.2g}",
        f"{one.deviation_max:.2g}", f"{one.run_ms_p50:.2f}", f"{one.run_ms_p99:.2f}",
        size(one.size_bytes), "-" if one.memory_bytes is None else size(one.memory_bytes), remark,
    )  # fmt: skip
