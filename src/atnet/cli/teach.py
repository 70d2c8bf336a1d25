"""`atnet teach`"""

from pathlib import Path

from rich.console import Console

from atnet.config import Config, Options


def teach(recipe: Path | None = None, /, *, config: Options = None) -> None:
    """Ask the teachers before a training: `atnet teach --data FOLDER --teacher NAME --distill.views 8`.

    `atnet train` with the same options finds the answers, and asks no teacher; so does a training of another network,
    or at another learning rate. A stopped command goes on where it was.

    Parameters
    ----------
    recipe
        A YAML file with any of the training options; options given here go before it.
    """
    from atnet.progress import duration
    from atnet.training.teach import teach as run

    kept = run(config or Config())
    console = Console(highlight=False)
    console.print(
        f"{kept.views:,} answers, {kept.new:,} of them new, in {duration(kept.seconds)}. Written: {kept.path} "
        f"({kept.bytes / 1e6:,.1f} MB)",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    console.print("Next: atnet train with the same options", markup=False, soft_wrap=True)
