"""`atnet probe`"""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from atnet.files import quoted
from atnet.weights.info import SHIPPED


def probe(
    *,
    data: str,
    weights: tuple[str, ...] = (SHIPPED,),
    model: str = "",
    size: int | None = None,
    out: Path | None = None,
    batch: int = 64,
    workers: int = 2,
    device: str = "auto",
) -> None:
    """Fit a logistic regression on a frozen network's features; of several networks, compare them.

    Parameters
    ----------
    data
        A folder of class folders, or what else training takes.
    weights
        What names a network, once or more: a run, a weights file, a name.
    model
        The architecture, where a weights file does not say it: resnet18 for example.
    size
        Side of the network's input, in pixels; the weights' own if not given.
    out
        Folder of the run, runs/DATE-TIME-MODEL if not given; of several networks, a folder for each is made in it.
    batch
        Images at a time.
    workers
        Loader processes.
    """
    from atnet.errors import ConfigError
    from atnet.eval.metrics import interval
    from atnet.training.loop import probe as run_probe

    if not weights:
        raise ConfigError("--weights: name a network to probe, or leave it out for the one that comes with AT-Net")
    options = {"source": data, "workers": workers} | ({"size": size} if size else {})
    named = {"model": model} if model else {}
    found = []
    for number, one in enumerate(weights, 1):
        folder = out / f"{number}-{Path(one).stem}".replace(":", "-") if out and len(weights) > 1 else out
        found.append((one, run_probe(options, one, out=folder, batch=batch, device=device, **named)))
    found.sort(key=lambda pair: -pair[1].record["probe"]["cross_validated_top1"])
    console = Console(highlight=False)
    table = Table()
    for name in ("weights", "cross-validation", "validation (95%)", "run"):
        table.add_column(name, overflow="fold")
    for one, run in found:
        record = run.record
        top1, count = record["top1"]["last"], record["val_pictures"] - record["bad_pictures"]["val"]
        low, high = interval(top1, count)
        mean = record["probe"]["cross_validated_top1"]
        table.add_row(
            Text(one), f"{mean:.1f}%" if mean >= 0 else "", f"{top1:.1f}% ({low:.0f} to {high:.0f}, {count:,} images)",
            Text(str(run.folder)),
        )  # fmt: skip
    console.print(table)
    best, run = found[0]
    again = "".join(f" {option}" for option in (model and f"--model {model}", size and f"--data.size {size}") if option)
    console.print(
        f"Next: atnet train --data {quoted(data)} --weights {quoted(best)}{again}   (fine-tuning from the probe), or "
        f"atnet predict IMAGE --weights {quoted(run.folder)}",
        markup=False,
        soft_wrap=True,
    )
