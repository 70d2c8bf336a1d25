"""`atnet sizes`"""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table


def sizes(*names: str, plot: Annotated[Path | None, Parameter(alias="--picture")] = None, size: int = 224) -> None:
    """Print the size table, with parameters counted at 1000 classes.

    Parameters
    ----------
    names
        Which sizes, with changes too (xxxs+kernel=7); all if none is given.
    plot
        A PNG to draw: where the parameters and multiply-adds of each lie. Nothing is overwritten.
    size
        Side of the image's input, in pixels.
    """
    import torch

    from atnet.errors import ConfigError
    from atnet.files import require_new
    from atnet.models.load import create_classifier
    from atnet.models.sizes import SIZES, layout_of

    console = Console(highlight=False)
    table = Table(
        *("Size", "Params", "ConvMix", "TransMix", "Patch_size", "Conv_Size", "Embed_Dim", "Heads"),
        box=None,
        pad_edge=False,
        collapse_padding=True,
        header_style="bold",
    )
    for name in names or SIZES:
        layout = layout_of(name)
        if layout is None:
            raise ConfigError(f"{name}: no size of AT-Net; `atnet sizes` lists them")
        with torch.device("meta"):
            count = sum(p.numel() for p in create_classifier(name, classes=1000, size=size).parameters())
        table.add_row(name, f"{count / 1e6:.2f}M", *layout.columns, str(layout.heads))
    if plot is not None:
        from atnet.viz.parts import draw_parts

        require_new(plot, "--plot")
        draw_parts(names or [name for name in SIZES if "_" not in name], size, plot)
    console.print(table)
    console.print(
        "\nConvMix: blocks of each stage. TransMix: layers of self-attention + layers of class attention. "
        "Patch_size: strides of the stem and of the later stages. Embed_Dim: widths of the stages."
    )
    if plot is not None:
        console.print(f"Written: {plot}", markup=False, soft_wrap=True)
    console.print("Next: atnet train --model xxs --data FOLDER")
