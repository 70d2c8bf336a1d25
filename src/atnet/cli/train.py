"""`atnet train`"""

import datetime
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from atnet.config import Config, Options
from atnet.files import quoted

if TYPE_CHECKING:
    from atnet.training.plan import Forecast


def train(
    recipe: Path | None = None,
    /,
    *,
    config: Options = None,
    out: Path | None = None,
    resume: Path | None = None,
    check: Annotated[bool, Parameter(negative=())] = False,
    time_budget: datetime.timedelta | None = None,
    folds: int | None = None,
) -> None:
    """Train a classifier: `atnet train --data FOLDER`, or `atnet train recipes/digits.yaml --epochs 5`.

    Parameters
    ----------
    recipe
        A YAML file with any of the options below; options given here go before it.
    out
        Folder of the run, runs/DATE-TIME-MODEL if not given; nothing is overwritten.
    resume
        A run to go on with from where it was saved, with its own configuration.
    check
        Build everything, take a few steps, and say what the run will take in time, memory and disk; write nothing.
    time_budget
        Train for so long in all, 20m or 3h for example, in place of --epochs, however fast the steps turn out to be.
    folds
        Cross-validation: train so many times, each validated on another part of the training images, below --out, or
        runs/folds. The same command goes on where it stopped.
    """
    from atnet import cli
    from atnet.errors import ConfigError
    from atnet.progress import duration
    from atnet.run.record import accuracy, kept_weights
    from atnet.training.distributed import is_launched, is_main_process
    from atnet.training.loop import resume_run, train_config, unfinished_run
    from atnet.training.plan import forecast_config, settle

    if resume is not None:
        if recipe is not None or config is not None or out is not None or check or time_budget or folds is not None:
            raise ConfigError("--resume goes on with the run's own configuration: give no recipe or option with it")
        run = resume_run(resume)
    elif folds is not None:
        if check or time_budget is not None:
            raise ConfigError("--folds trains several times: leave --check and --time-budget out")
        _cross_validate(config or Config(), folds, out or Path("runs/folds"))
        return
    elif check:
        found = forecast_config(settle(config or Config()))
        _print_forecast(found if time_budget is None else found.within(time_budget))
        return
    else:
        config = settle(config or Config())
        unfinished = None if out or time_budget or is_launched() else unfinished_run(config)
        if unfinished and _wants(unfinished):
            run = resume_run(unfinished)
        else:
            run = train_config(config, out=out, time_budget=time_budget, age=time.monotonic() - cli.began)

    folder = run.folder
    named = {"ema": "moving average, which --weights RUN takes", "last": "last weights"}
    if not is_main_process():
        return
    _draw(folder)
    kept = kept_weights(run.record)
    _, low, high, count = accuracy(run.record)
    top1 = ", ".join(
        f"{run.record['top1'][name]:.2f}% ({named[name]})"
        for name in sorted(run.record["top1"], key=lambda name: name != kept)
    )
    console = Console(highlight=False)
    console.print(
        f"\nTop-1 {top1}; 95% interval {low:.1f} to {high:.1f} ({count:,} images), "
        f"{duration(run.record['seconds'])}. Written to {folder}:",
        markup=False,
        soft_wrap=True,
    )
    for path in sorted(folder.iterdir()):
        console.print(f"  {path.name}", markup=False)
    given = quoted(folder)
    console.print(
        f"Next: atnet report {given}   (one page with all of it), or atnet predict IMAGE --weights {given}",
        markup=False,
        soft_wrap=True,
    )


def _cross_validate(config: Config, folds: int, out: Path) -> None:
    from atnet.cli.tables import table_of
    from atnet.run.record import accuracy
    from atnet.training.folds import PREDICTIONS, TABLE, cross_validate

    found = cross_validate(config, folds, out)
    rows = []
    for fold, record in enumerate(found.records, 1):
        top1, low, high, count = accuracy(record)
        rows.append([str(fold), f"{top1:.2f}", f"{low:.1f} to {high:.1f}", f"{count:,}"])
    console = Console(highlight=False)
    console.print(table_of(["Fold", "Top-1", "95% interval", "Images"], rows))
    console.print(
        f"Top-1 {found.top1:.2f}% of all images, each answered by a network that was not trained on it; 95% interval "
        f"{found.low:.1f} to {found.high:.1f}; between the folds {found.spread:.2f}.\n"
        f"Written: {out / TABLE}, {out / PREDICTIONS}, a run for each fold. Next: the same command without --folds, "
        f"for a network trained on all of them; atnet report {quoted(out / 'fold-1')}",
        markup=False,
        soft_wrap=True,
    )


def _draw(run: Path) -> None:
    """Draws the finished run; a full disk or images that are gone meanwhile cost it its plots alone."""
    try:
        from atnet.run.loggers import send_pictures
        from atnet.viz.run import render_run  # which imports matplotlib

        send_pictures(run, render_run(run))
    except Exception as error:  # the training is done, whatever is wrong with drawing it
        console = Console(stderr=True, highlight=False)
        console.print(f"not drawn: {error}; `atnet report {quoted(run)}` tries again", markup=False, soft_wrap=True)


def _wants(run: Path) -> bool:
    """Whether an unfinished run of the same command is to be gone on with; where no one can be asked, it is not."""
    console = Console(stderr=True, highlight=False)
    console.print(f"{run}: the same training, not finished", markup=False, soft_wrap=True)
    if sys.stdin.isatty() and console.is_terminal:
        return console.input("Go on with it? [Y/n] ").strip().lower() in ("", "y", "yes")
    console.print(
        f"A new run begins; to go on with that one: atnet train --resume {quoted(run)}", markup=False, soft_wrap=True
    )
    return False


def _print_forecast(found: "Forecast") -> None:
    from atnet.progress import counted, duration

    config = found.config
    before = found.setup + config.epochs * found.comparison
    first = "before the first step" + ", with a comparison of fine-tuning and its probe" * bool(found.folds)
    setup = f", and {duration(before)} {first}" if before else ""
    short = "; MORE THAN THERE IS: use a smaller --batch or --data.size" if found.memory > found.free else ""
    lines = [
        f"{config.model} at {config.data.size} px, batch {config.batch}, on {config.data.source_name}: "
        f"{counted(config.epochs, 'epoch')} of {counted(found.steps_per_epoch, 'step')}, "
        f"{config.batch / found.step:.0f} images/s",
        f"data    {counted(found.classes, 'class')}, {found.train_images:,} training and {found.val_images:,} "
        "validation images",
        f"time    {duration(found.seconds)}: {duration(found.epoch)} an epoch, "
        f"with {counted(config.evaluations, 'evaluation')} of {duration(found.evaluation)} in all{setup}",
        f"memory  {found.memory / 1000:.1f} GB, of {found.free / 1000:.1f} GB free{short}",
        f"disk    {found.disk:.0f} MB",
    ]
    console = Console(highlight=False)
    console.print("\n".join(lines), markup=False, soft_wrap=True)
    console.print("Nothing was written. Next: the same command without --check", markup=False, soft_wrap=True)
