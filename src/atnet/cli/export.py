"""`atnet export`"""

from pathlib import Path
from typing import Literal

from rich.console import Console


def export(
    *,
    weights: Path = Path("runs/last"),
    to: Literal["onnx"] = "onnx",
    out: Path | None = None,
    data: str | None = None,
) -> None:
    """Write weights as a file that runs without torch, checked on real pictures.

    Parameters
    ----------
    weights
        A run, a folder or a safetensors file; of a run the moving average of the last epoch.
    to
        onnx: for ONNX Runtime, fp32.
    out
        The file; model.onnx beside the weights if not given.
    data
        A folder of class folders to check the file on; the run's validation pictures if not given.
    """
    from atnet.deploy.export import export as run

    done = run(weights, out, data=data)
    console = Console(highlight=False)
    console.print(
        f"Written: {done.path} ({done.path.stat().st_size / 1e6:.1f} MB): on {done.pictures} pictures the same "
        f"labels as torch, logits within {done.difference:.1e} of the largest\n"
        f"Next: atnet predict PICTURE --weights {done.path}   (needs no torch)",
        markup=False,
        soft_wrap=True,
    )
