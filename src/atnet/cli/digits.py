"""`atnet digits`"""

from pathlib import Path

from rich.console import Console

from atnet.files import quoted


def digits(out: Path, /) -> None:
    """Write the embedded digits as a folder of images: train/ and val/ with a folder a class.

    Parameters
    ----------
    out
        The folder, which must be absent or empty.
    """
    from atnet.data.sources import write_digits

    train, val = write_digits(out)
    console = Console(highlight=False)
    console.print(f"Written to {out}: {train:,} training and {val:,} validation images", markup=False, soft_wrap=True)
    console.print(
        f"Next: atnet predict {quoted(out)}/val/7/*.png, or atnet train --data {quoted(out)}",
        markup=False,
        soft_wrap=True,
    )
