"""`atnet eval`"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from atnet.data.classes import printable
from atnet.files import quoted

if TYPE_CHECKING:
    from atnet.eval.metrics import HeadScores, Scores


def evaluate(
    *,
    weights: Path = Path("runs/last"),
    data: str | None = None,
    size: int | None = None,
    batch: int = 64,
    workers: int = 2,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    threads: int = 0,
    mismatch: Literal["error", "ignore"] = "error",
    model: str = "",
    tta: Literal["none", "mirror", "crops"] = "none",
) -> None:
    """Evaluate weights on labelled images: top-1, top-5, and each class.

    Parameters
    ----------
    weights
        A run, a folder or a weights file; of a run the moving average of the last epoch. Or pretrained ones:
        timm:resnet18, hf-hub:user/name, local-dir:FOLDER.
    data
        A folder with val/, or of class folders, or "digits"; the run's own validation part if not given.
    size
        Side of the input in pixels; that of the training if not given.
    batch
        Images at a time.
    workers
        Loader processes.
    device
        auto takes cuda, then mps, then cpu.
    threads
        CPU threads of the network; 0 is all.
    mismatch
        ignore leaves images of classes out that the weights do not know.
    model
        The architecture of a --weights file that says nothing of itself: resnet18, for example.
    tta
        Test-time augmentation: mirror answers by an image and its mirror image, in twice the time, crops by its middle,
        its corners and their mirror images, in ten times.
    """
    from atnet.device import use_threads
    from atnet.errors import DataError
    from atnet.eval.evaluate import evaluate as run
    from atnet.eval.metrics import interval

    use_threads(threads)
    done = run(
        weights, data, size=size, batch=batch, workers=workers, device=device, mismatch=mismatch, model=model, tta=tta
    )
    scores, info = done.scores, done.info
    table = Table("class", "name", "images", "recall %", "precision %", box=None, header_style="bold")
    rows = zip(info.classes, info.class_names, scores.support, scores.recall, scores.precision, strict=True)
    for row in sorted(rows, key=lambda r: (np.isnan(r[3]), r[3])):
        names = (Text(printable(name)) for name in row[:2])
        table.add_row(*names, str(row[2]), *("-" if np.isnan(v) else f"{v:.2f}" for v in row[3:]))
    low, high = interval(scores.top1, scores.count)
    top5 = f"  top-5 {scores.top5:.4f}%" if scores.classes > 5 else ""
    top = f"top-1 {scores.top1:.4f}% (95% interval {low:.1f} to {high:.1f}){top5}"
    origin = f"{'moving average ' if info.moving_average else ''}after epoch {info.epoch}" if info.epoch else info.model
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"\n{scores.count:,} images of {done.images} at {info.preprocess.size} px\n"
        f"weights {done.weights}: {origin}\n"
        f"{top}  loss {scores.loss:.5f}\n"
        f"balanced accuracy {scores.balanced_accuracy:.2f}%  macro F1 {scores.macro_f1:.2f}%",
        markup=False,
        soft_wrap=True,
    )
    if scores.heads:
        console.print(_of_heads(scores, scores.heads))
    if scores.bad:
        shown = "\n  ".join(printable(reason) for _, reason in scores.bad[:10])
        more = f"\n  and {len(scores.bad) - 10:,} more" if len(scores.bad) > 10 else ""
        raise DataError(
            f"{len(scores.bad):,} of {scores.count + len(scores.bad):,} images could not be read, so these are not "
            f"the data set's figures:\n  {shown}{more}"
        )
    console.print(f"Next: atnet predict IMAGE --weights {quoted(weights)}", markup=False, soft_wrap=True)


def _of_heads(scores: "Scores", heads: "HeadScores") -> Table:
    """Each decision head, and all together."""
    from atnet.eval.metrics import calibration

    table = Table("head", "top-1 %", "loss", "calibration error %", box=None, header_style="bold")
    for i, loss in enumerate(heads.loss):
        right = heads.predicted[:, i] == scores.labels
        error = calibration(right, heads.confidence[:, i]).error
        table.add_row(
            "class token" if i == 0 else f"register {i}", f"{100 * right.mean():.2f}", f"{loss:.4f}", f"{error:.2f}"
        )
    error = calibration(scores.predicted == scores.labels, scores.confidence).error
    table.add_row("together", f"{scores.top1:.2f}", f"{scores.loss:.4f}", f"{error:.2f}")
    table.caption = (
        f"two heads answer differently on {heads.disagreement:.2f}% of the images, "
        f"their errors correlate by {heads.error_correlation(scores.labels):.2f}"
    )
    return table
