"""`atnet predict`"""

import contextlib
import json
import os
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from atnet.data.classes import printable
from atnet.weights.info import WEIGHTS, WeightsInfo

if TYPE_CHECKING:
    from atnet.inference.prediction import Prediction, Unread

BAR, MOST_FAILURES = 30, 100


def predict(
    *images: Path,
    weights: Path | None = None,
    top: int = 5,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    abstain: float | None = None,
    model: str = "",
    csv: Path | None = None,
    parquet: Path | None = None,
    sort_into: Path | None = None,
    link: Annotated[bool, Parameter(negative=())] = False,
    unsure_below: float = 0.0,
    batch: int = 16,
    threads: int = 0,
    tta: Literal["none", "mirror", "crops"] = "none",
    camera: int | None = None,
) -> None:
    """Say what images show: the likeliest classes by name, with probabilities.

    Parameters
    ----------
    images
        Image files, or folders with images in them, or in folders in them; of a video a frame a second, called
        FILE#t=SECONDS.
    weights
        A run, a folder, a weights file, an ONNX file of `atnet export`, or pretrained ones: timm:resnet18,
        hf-hub:user/name, local-dir:FOLDER; the newest run if not given, and before there is one, xxxs.general, a
        network of 385 classes that comes with AT-Net.
    top
        How many classes.
    as_json
        Print JSON, a list with an object for each image, of one that cannot be read with the error.
    device
        auto takes cuda, then mps, then cpu.
    abstain
        The accuracy to hold, 0.95 for example: where the answer is not sure enough for it, "ask a person". How sure it
        has to be was found on the validation images when the weights were trained.
    model
        The architecture of a --weights file that says nothing of itself: resnet18, for example.
    csv
        A new file to write a row for each image to, as they are answered: its path, classes and probabilities, or why
        it cannot be read.
    parquet
        The same as a Parquet file.
    sort_into
        A folder that gets a folder of each class with the images of it, copied.
    link
        With --sort-into: links in place of copies.
    unsure_below
        With --sort-into: images whose likeliest class has a smaller probability go to _unsure.
    batch
        Images that the network sees at a time.
    threads
        CPU threads of the network; 0 is all.
    tta
        Test-time augmentation: mirror answers by an image and its mirror image, in twice the time, crops by its middle,
        its corners and their mirror images, in ten times.
    camera
        In place of images what a camera sees, the first being 0: a frame a second until Ctrl-C.
    """
    from atnet.data.video import is_video
    from atnet.errors import ConfigError, DataError
    from atnet.inference.output import open_output
    from atnet.inference.prediction import Unread, predict_each, weights_to_ask

    if camera is not None and (images or camera < 0):
        raise ConfigError(f"--camera {camera}: a number from 0 on, and without images")
    if not images and camera is None:
        raise ConfigError("no image given: atnet predict IMAGE... --weights RUN")
    if top < 1:
        raise ConfigError(f"--top {top} must be 1 or more")
    if not 0 <= unsure_below <= 1:
        raise ConfigError(f"--unsure-below {unsure_below:g} is a probability: use 0 to 1")
    if sort_into is None and (link or unsure_below):
        raise ConfigError("--link and --unsure-below are of --sort-into FOLDER: give that too")
    if sort_into is not None and (camera is not None or any(map(is_video, images))):
        raise ConfigError("--sort-into sorts files, and a video's frames are none: use --csv")
    into = sort_into.resolve() if sort_into else None
    if into and any(into.is_relative_to(folder.resolve()) for folder in images if folder.is_dir()):
        raise ConfigError(
            f"--sort-into {sort_into}: in a folder whose images are asked about; choose one outside of it"
        )
    asked = weights_to_ask(weights, device, model)
    failures: list[DataError] = []
    options: dict[str, Any] = {"top": top, "device": device, "abstain": abstain, "batch": batch, "threads": threads}
    answers = predict_each(list(images), asked, **options, tta=tta, camera=camera)
    to_files = csv is not None or parquet is not None or sort_into is not None
    shown = count = unread = 0
    with open_output(csv, parquet, sort_into, top=top, link=link, unsure_below=unsure_below) as output:
        with contextlib.suppress(KeyboardInterrupt) if camera is not None else contextlib.nullcontext():
            for answer in answers:
                output.add(answer)
                count += 1
                if isinstance(answer, Unread):
                    unread += 1
                    if len(failures) < MOST_FAILURES:
                        failures.append(answer.error)
                if as_json:
                    print(("," if shown else "[") + "\n" + indent(json.dumps(_plain(answer), indent=2), "  "), end="")
                    shown += 1
                elif isinstance(answer, Unread):
                    continue
                elif not to_files:
                    _show(answer)
        if as_json:
            print("\n]" if shown else "[]")
    console = Console(highlight=False)
    if to_files and not as_json:
        for line in output.written:
            console.print(f"Written: {line}", markup=False, soft_wrap=True)
    if not as_json:
        console.print(
            "\nNext: atnet predict IMAGE --json for programs, atnet eval for a labelled folder", soft_wrap=True
        )
        if weights is None and asked.path.parent == WEIGHTS:
            _tell_limits(asked.path)
        elif weights is None:
            run_asked = os.path.relpath(asked.path.parent.resolve())
            console.print(f"Answered by the newest run, {run_asked}", markup=False, soft_wrap=True)
    if failures and to_files:
        raise DataError(f"{unread:,} of {count:,} images could not be read; the first: {failures[0]}")
    if failures:
        more = [f"{unread - len(failures):,} more could not be read"] if unread > len(failures) else []
        raise DataError("\natnet: ".join([*map(str, failures), *more]))


def _plain(answer: "Prediction | Unread") -> dict[str, Any]:
    from atnet.inference.prediction import Unread
    from atnet.inference.prediction import as_json as top_as_json

    if isinstance(answer, Unread):
        return {"image": answer.image, "error": str(answer.error)}
    return {
        "image": answer.image,
        "top": top_as_json(answer.top),
        "milliseconds": round(answer.milliseconds, 1),
        **({"heads": top_as_json(answer.heads)} if answer.heads else {}),
        **({"ask_a_person": answer.ask_a_person} if answer.needs else {}),
    }


def _show(answer: "Prediction") -> None:
    console = Console(highlight=False)
    console.print(Text(f"\n{printable(answer.image)}  ({answer.milliseconds:.0f} ms)", style="bold"), soft_wrap=True)
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


def _agreement(answer: "Prediction") -> str:
    """How many heads say by themselves what they say together, and what the others do."""
    others = [head for head in answer.heads if head[0] != answer.top[0][0]]
    said = ", ".join(sorted({printable(name) for _, name, _ in others}))
    agree = f"{len(answer.heads) - len(others)} of {len(answer.heads)} heads agree"
    return f"{agree}; the others say: {said}" if others else agree


def _tell_limits(asked: Path) -> None:
    """That the network which comes with AT-Net answered, and where to see what it knows."""
    from safetensors import safe_open

    path = asked.with_suffix(".safetensors")
    with safe_open(path, "numpy") as opened:
        count = len(WeightsInfo.from_metadata(opened.metadata(), path).classes)
    Console(highlight=False).print(
        f"Answered by {asked.stem}, which comes with AT-Net and knows {count} kinds of things and nothing else: "
        f"`atnet weights {asked.stem}` lists them.\n"
        "For other classes: atnet train --data FOLDER",
        markup=False,
        soft_wrap=True,
    )
