"""`atnet train`"""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from atnet.config import Config


def train(
    recipe: Path | None = None,
    /,
    *,
    config: Annotated[Config | None, Parameter(name="*", negative_iterable=())] = None,
    out: Path | None = None,
    resume: Path | None = None,
) -> None:
    """Train a classifier: `atnet train --data FOLDER`, or `atnet train recipes/digits.yaml --epochs 5`.

    Parameters
    ----------
    recipe
        A YAML file with any of the options below; options given here go before it.
    out
        Folder of the run, runs/DATE-TIME-MODEL if not given; nothing is overwritten.
    resume
        A run to go on with from its last whole epoch, with its own configuration.
    """
    from atnet.training.loop import resume_run, train_config

    if resume is not None:
        if recipe is not None or config is not None or out is not None:
            from atnet.errors import ConfigError

            raise ConfigError("--resume goes on with the run's own configuration: give no recipe or option with it")
        run = resume_run(resume)
    else:
        run = train_config(config or Config(), out=out)

    folder = run.folder
    top1 = ", ".join(f"{value:.2f}% ({name})" for name, value in run.record["top1"].items())
    console = Console(highlight=False)
    console.print(
        f"\nTop-1 {top1}, {run.record['seconds'] / 60:.1f} minutes. Written to {folder}:", markup=False, soft_wrap=True
    )
    for path in sorted(folder.iterdir()):
        console.print(f"  {path.name}", markup=False)
    console.print(f"Next: atnet eval --weights {folder}", markup=False, soft_wrap=True)
