"""`atnet pretrain`"""

from pathlib import Path

from rich.console import Console

from atnet.config import Config, Options
from atnet.files import quoted


def pretrain(
    recipe: Path | None = None, /, *, config: Options = None, groups: int = 0, out: Path | None = None
) -> None:
    """Learn from images without labels: `atnet pretrain --data PHOTOS --teacher timm:tf_efficientnet_lite0`.

    The images are grouped by what the teacher sees in them, and a network learns to tell the groups apart as the
    teacher does; its weights are a start for `atnet train --weights`. It is a run like any other:
    `atnet train --resume RUN` goes on with it.

    Parameters
    ----------
    recipe
        A YAML file with any of the training options; options given here go before it.
    groups
        How many groups; one for 20 images if not given, 1,000 at most.
    out
        Folder of the run, runs/DATE-TIME-MODEL if not given; nothing is overwritten.
    """
    from atnet.training.pretrain import pretrain_config

    run = pretrain_config(config or Config(), groups, out)
    folder = quoted(run.folder)
    console = Console(highlight=False)
    console.print(
        f"{run.record['classes']} groups of {run.record['train_images'] + run.record['val_images']:,} images learned. "
        f"Written to {run.folder}",
        markup=False,
        soft_wrap=True,
    )
    console.print(f"Next: atnet train --data FOLDER --weights {folder}", markup=False, soft_wrap=True)
