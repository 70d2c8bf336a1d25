"""`atnet probe`"""

from pathlib import Path
from typing import Literal

from rich.console import Console

from atnet.cli.tables import table_of
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
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
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
    device
        auto takes cuda, then mps, then cpu.
    """
    from atnet.errors import ConfigError
    from atnet.run.record import accuracy
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
    rows = []
    for one, run in found:
        mean, (top1, low, high, count) = run.record["probe"]["cross_validated_top1"], accuracy(run.record)
        judged = f"{top1:.1f}% ({low:.0f} to {high:.0f}, {count:,} images)"
        rows.append((one, f"{mean:.1f}%" if mean >= 0 else "-", judged, str(run.folder)))
    console.print(table_of(("weights", "cross-validation", "validation (95%)", "run"), rows))
    best, run = found[0]
    again = "".join(f" {option}" for option in (model and f"--model {model}", size and f"--data.size {size}") if option)
    console.print(
        f"Next: atnet train --data {quoted(data)} --weights {quoted(best)}{again}   (fine-tuning from the probe), or "
        f"atnet predict IMAGE --weights {quoted(run.folder)}",
        markup=False,
        soft_wrap=True,
    )
