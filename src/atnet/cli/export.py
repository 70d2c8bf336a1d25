"""`atnet export`"""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console


def export(
    *,
    weights: Path = Path("runs/last"),
    to: Literal["onnx", "safetensors"] = "onnx",
    half: Annotated[bool, Parameter(negative=())] = False,
    out: Path | None = None,
    data: str | None = None,
) -> None:
    """Write weights as one file to hand on, ONNX (which needs no torch) or safetensors, checked on real pictures.

    Parameters
    ----------
    weights
        A run, a folder or a safetensors file; of a run the moving average of the last epoch.
    to
        onnx: for ONNX Runtime; safetensors: for torch.
    half
        Store numbers in 16 bits: half as large, and computed in 32 as before.
    out
        The file; model.onnx or model.safetensors beside the weights if not given.
    data
        A folder of class folders to check the file on; the run's validation pictures if not given.
    """
    from atnet.deploy.export import export as run

    done = run(weights, out, to=to, half=half, data=data)
    console = Console(highlight=False)
    console.print(
        f"Written: {done.path} ({done.path.stat().st_size / 1e6:.1f} MB): on {done.pictures} pictures the same "
        f"labels as the weights, logits within {done.difference:.1e} of the largest\n"
        f"Next: atnet predict PICTURE --weights {done.path}" + ("   (needs no torch)" if to == "onnx" else ""),
        markup=False,
        soft_wrap=True,
    )
