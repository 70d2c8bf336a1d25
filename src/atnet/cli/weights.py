"""`atnet weights`"""

import dataclasses
import json
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from atnet.cli.tables import table_of


def weights(name: str = "", /, *, as_json: Annotated[bool, Parameter(name="--json", negative=())] = False) -> None:
    """List the weights on this machine that --weights takes by name: AT-Net's own, and what was fetched from the hub.

    Parameters
    ----------
    name
        Weights, as --weights takes them: what these are, and the classes that they know.
    as_json
        Print JSON, a list with an object for each.
    """
    from atnet.models.listing import known_weights

    if name:
        _tell(name, as_json)
        return
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


def _tell(name: str, as_json: bool) -> None:
    """What weights say of themselves."""
    from atnet.data.classes import printable
    from atnet.models.load import read_info

    info = read_info(name)
    if as_json:
        print(json.dumps(dataclasses.asdict(info), indent=2))
        return
    known = "\n".join(f"  {printable(one)}" for one in info.class_names)
    Console(highlight=False).print(
        f"{name}: {info.model} at {info.preprocess.size} px, {len(info.classes)} classes:\n{known}\n"
        f"Next: atnet predict IMAGE --weights {name}, or atnet train --data FOLDER --weights {name}",
        markup=False,
        soft_wrap=True,
    )
