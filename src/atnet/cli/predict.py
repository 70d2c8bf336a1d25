"""`atnet predict`"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from atnet.data.classes import printable
from atnet.weights.info import WEIGHTS

if TYPE_CHECKING:
    from atnet.inference.prediction import Prediction

BAR = 30


def predict(
    *images: Path,
    weights: Path | None = None,
    top: int = 5,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    abstain: float | None = None,
    model: str = "",
) -> None:
    """Say what images show: the likeliest classes by name, with probabilities.

    Parameters
    ----------
    images
        Image files, or folders with images in them.
    weights
        A run, a folder, a weights file, an ONNX file of `atnet export`, or pretrained ones: timm:resnet18,
        hf-hub:user/name, local-dir:FOLDER; the newest run if not given, and before there is one, xxxs.general, a
        network of 385 classes that comes with AT-Net.
    top
        How many classes.
    as_json
        Print JSON, a list with an object for each image.
    device
        auto takes cuda, then mps, then cpu.
    abstain
        The accuracy to hold, 0.95 for example: where the answer is not sure enough for it, "ask a person". How sure it
        has to be was found on the validation images when the weights were trained.
    model
        The architecture of a --weights file that says nothing of itself: resnet18, for example.
    """
    from atnet.errors import ConfigError, DataError
    from atnet.inference.prediction import predict as run
    from atnet.inference.prediction import weights_to_ask

    if not images:
        raise ConfigError("no image given: atnet predict IMAGE... --weights RUN")
    if top < 1:
        raise ConfigError(f"--top {top} must be 1 or more")
    failures: list[DataError] = []
    asked = weights_to_ask(weights, device, model)
    answers = run(list(images), asked, top=top, device=device, abstain=abstain, failed=failures.append)
    if as_json:
        print(json.dumps([_plain(answer) for answer in answers], indent=2))
    else:
        _show(answers)
        if weights is None and asked.path.parent == WEIGHTS:
            _tell_limits(asked.path)
        elif weights is None:
            run_asked = os.path.relpath(asked.path.parent.resolve())
            Console(highlight=False).print(f"Answered by the newest run, {run_asked}", markup=False, soft_wrap=True)
    if failures:
        raise DataError("\natnet: ".join(map(str, failures)))


def _plain(answer: "Prediction") -> dict[str, Any]:
    from atnet.inference.prediction import as_json as top_as_json

    return {
        "image": answer.image,
        "top": top_as_json(answer.top),
        "milliseconds": round(answer.milliseconds, 1),
        **({"heads": top_as_json(answer.heads)} if answer.heads else {}),
        **({"ask_a_person": answer.ask_a_person} if answer.needs else {}),
    }


def _show(answers: list["Prediction"]) -> None:
    console = Console(highlight=False)
    for answer in answers:
        console.print(
            Text(f"\n{printable(answer.image)}  ({answer.milliseconds:.0f} ms)", style="bold"), soft_wrap=True
        )
        names = [printable(name) for _, name, _ in answer.top]
        width = max(map(len, names))
        for name, (_, _, probability) in zip(names, answer.top, strict=True):
            bar = "█" * round(BAR * probability)
            console.print(Text(f"  {name:<{width}}  {bar:<{BAR}}  {100 * probability:5.1f}%"))
        if answer.heads:
            console.print(Text(f"  {_agreement(answer)}"), soft_wrap=True)
        if answer.ask_a_person:
            needs = f"it would have to be {100 * answer.needs:.1f}% sure"
            console.print(Text(f"  ask a person: {needs}", style="bold yellow"), soft_wrap=True)
    console.print("\nNext: atnet predict IMAGE --json for programs, atnet eval for a labelled folder", soft_wrap=True)


def _agreement(answer: "Prediction") -> str:
    """How many heads say by themselves what they say together, and what the others do."""
    others = [head for head in answer.heads if head[0] != answer.top[0][0]]
    said = ", ".join(sorted({printable(name) for _, name, _ in others}))
    agree = f"{len(answer.heads) - len(others)} of {len(answer.heads)} heads agree"
    return f"{agree}; the others say: {said}" if others else agree


def _tell_limits(asked: Path) -> None:
    """That the network which comes with AT-Net answered, and where to see what it knows."""
    from atnet.exported.onnx import OnnxNetwork

    count = len(OnnxNetwork(asked.with_suffix(".onnx")).info.classes)
    Console(highlight=False).print(
        f"Answered by {asked.stem}, which comes with AT-Net and knows {count} kinds of things and nothing else: "
        f"`atnet weights {asked.stem}` lists them.\n"
        "For other classes: atnet train --data FOLDER",
        markup=False,
        soft_wrap=True,
    )
