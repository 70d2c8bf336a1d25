"""`atnet weights`"""

import json
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from atnet.cli.tables import table_of


def weights(*, as_json: Annotated[bool, Parameter(name="--json", negative=())] = False) -> None:
    """List the weights on this machine that --weights takes by name: AT-Net's own, and what was fetched from the hub.

    Parameters
    ----------
    as_json
        Print JSON, a list with an object for each.
    """
    from atnet.models.listing import known_weights

    rows = known_weights()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    of = {"atnet": "comes with AT-Net", "hub": "fetched"}
    table = [
        (
            str(row["name"]),
            str("-" if row["classes"] is None else row["classes"]),
            f"{row['mb']:.1f}",
            of[str(row["from"])],
        )
        for row in rows
    ]
    console = Console(highlight=False)
    console.print(table_of(("--weights", "classes", "MB", ""), table))
    console.print(
        "Others are fetched when they are named: timm:resnet18 (timm's), hf-hub:user/name\n"
        "Next: atnet train --data FOLDER --weights NAME",
        markup=False,
        soft_wrap=True,
    )
