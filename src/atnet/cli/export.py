"""`atnet export`"""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from atnet.files import quoted

Flag = Annotated[bool, Parameter(negative=())]


def export(
    *,
    weights: Path = Path("runs/last"),
    to: Literal["onnx", "safetensors"] = "onnx",
    half: Flag = False,
    int8: Flag = False,
    max_drop: float = 0.5,
    with_preprocessing: Flag = False,
    licence: str = "",
    out: Path | None = None,
    data: str | None = None,
    model: str = "",
    classes: Path | None = None,
) -> None:
    """Write weights as one file to hand on, ONNX (which needs no torch) or safetensors, checked on real images.

    Parameters
    ----------
    weights
        A run, a folder or a weights file; of a run the moving average of the last epoch. Or pretrained ones:
        timm:resnet18, hf-hub:user/name, local-dir:FOLDER.
    to
        onnx: for ONNX Runtime; safetensors: for torch.
    half
        Store numbers in 16 bits: half as large, and computed in 32 as before.
    int8
        Of ONNX: store and compute in 8 bits, and in float where that would cost more accuracy than --max-drop allows; a
        report of what was tried is written beside the file.
    max_drop
        Points of top-1 that --int8 may cost.
    with_preprocessing
        Of ONNX: the file resizes, crops and normalises by itself; its input is one image, uint8 (height, width, 3).
    licence
        Of the weights, for the file to tell: Apache-2.0, for example.
    out
        The file; if not given model.onnx or model.safetensors beside the weights, and of weights that come with
        AT-Net or from the hub, one of their name in this folder.
    data
        A folder of class folders to check the file on; the run's validation images if not given. With --int8, its
        training part, if it has one and the run's own is not known, is what the steps of 8 bits are taken from.
    model
        The architecture of a --weights file that says nothing of itself: resnet18, for example.
    classes
        A text file with the name of a class on each line, in the order of the network's outputs, where the weights do
        not say them.
    """
    from atnet.errors import ConfigError

    console = Console(highlight=False)
    named: Any = {"model": model, "classes": classes}
    if int8:
        if half or to != "onnx":
            raise ConfigError(
                "--int8 is of ONNX files, and stores in 16 bits what stays float: leave --half and --to out"
            )
        from atnet.cli.tables import table_of
        from atnet.export.quantize import quantize
        from atnet.viz.plots import draw_quantized

        made = quantize(
            weights, out, max_drop=max_drop, preprocessing=with_preprocessing, licence=licence, data=data, **named
        )
        draw_quantized(made.trials, made.costs, max_drop, made.plot)
        console.print(
            table_of(
                ("", "top-1 %", "as fp32 %", "MB", "ms", "times as fast"),
                [
                    (
                        one.name, f"{one.top1:.2f}", f"{one.agreement:.2f}", f"{one.megabytes:.2f}",
                        f"{one.milliseconds:.2f}", f"{one.speed:.2f}",
                    )
                    for one in made.trials
                ],
            )
        )  # fmt: skip
        costs = ", ".join(f"{part} {cost:.1%}" for part, cost in list(made.costs.items())[:3])
        path = made.path
        said = (
            f"on {made.images:,} images, one at a time by one thread. The logits' error with one part in 8 bits: "
            f"{costs}, ...\nWritten: {path}, {made.report}, {made.plot}"
        )
    else:
        from atnet.export.export import export as run

        done = run(
            weights, out, to=to, half=half, preprocessing=with_preprocessing, licence=licence, data=data, **named
        )
        path = done.path
        apart = "probabilities within" if with_preprocessing else "logits, of the largest, within"
        said = (
            f"Written: {path} ({path.stat().st_size / 1e6:.1f} MB): on {done.images} images the same labels as the "
            f"weights, {apart} {done.difference:.1e}"
        )
    console.print(
        f"{said}\nNext: atnet predict IMAGE --weights {quoted(path)}" + ("   (needs no torch)" if to == "onnx" else ""),
        markup=False,
        soft_wrap=True,
    )
