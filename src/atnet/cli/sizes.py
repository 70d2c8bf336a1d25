"""`atnet sizes`"""

from rich.console import Console
from rich.table import Table


def sizes() -> None:
    """Print the size table, with parameters counted at 1000 classes."""
    import torch

    from atnet.model.load import create_model
    from atnet.model.sizes import SIZES

    table = Table(
        *("Size", "Params", "ConvMix", "TransMix", "Patch_size", "Conv_Size", "Embed_Dim", "Heads"),
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for name, size in SIZES.items():
        with torch.device("meta"):
            count = sum(p.numel() for p in create_model(name).parameters())
        table.add_row(name, f"{count / 1e6:.2f}M", *size.columns, str(size.heads))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "\nTransMix: layers of all tokens + layers of class attention. Patch_size: stride of the stem x\n"
        "squeeze before the encoder. Embed_Dim: ConvMix/TransMix.\n"
        "Next: atnet train --model xxs --data FOLDER"
    )
