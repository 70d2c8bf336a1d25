"""`atnet predict`"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from atnet.data.classes import printable

BAR = 30


def predict(
    *pictures: Path,
    weights: Path = Path("runs/last"),
    top: int = 5,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> None:
    """Say what pictures show: the likeliest classes by name, with probabilities.

    Parameters
    ----------
    pictures
        Picture files.
    weights
        A run, a folder or a safetensors file.
    top
        How many classes.
    as_json
        Print JSON, a list with an object for each picture.
    device
        auto takes cuda, then mps, then cpu.
    """
    from atnet.errors import ConfigError
    from atnet.prediction import predict as run

    if not pictures:
        raise ConfigError("no picture given: atnet predict PICTURE... --weights RUN")
    if top < 1:
        raise ConfigError(f"--top {top} must be 1 or more")
    answers = run(list(pictures), weights, top=top, device=device)
    if as_json:
        print(json.dumps([asdict(answer) for answer in answers], indent=2))
        return
    console = Console(highlight=False)
    for answer in answers:
        console.print(
            Text(f"\n{printable(answer.picture)}  ({answer.milliseconds:.0f} ms)", style="bold"), soft_wrap=True
        )
        names = [printable(name) for _, name, _ in answer.top]
        width = max(map(len, names))
        for name, (_, _, probability) in zip(names, answer.top, strict=True):
            bar = "█" * round(BAR * probability)
            console.print(Text(f"  {name:<{width}}  {bar:<{BAR}}  {100 * probability:5.1f}%"))
    console.print("\nNext: atnet predict PICTURE --json for programs, atnet eval for a labelled folder", soft_wrap=True)
