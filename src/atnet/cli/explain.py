"""`atnet explain`"""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from atnet.data.classes import printable


def explain(
    *images: Path,
    weights: Path | None = None,
    out: Path = Path("explained"),
    size: int | None = None,
    whole: Annotated[bool, Parameter(negative=())] = False,
    target: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    threads: int = 0,
    model: str = "",
) -> None:
    """Show what the network looks at: a PNG for each image, with its answers, attention and a gradient map.

    Parameters
    ----------
    images
        Image files, or folders with images in them.
    weights
        A run, a folder or a weights file, or pretrained ones: timm:resnet18, hf-hub:user/name, local-dir:FOLDER; the
        newest run if not given, and before there is one, xxxs.general, which comes with AT-Net.
    out
        The folder for the PNGs.
    size
        Side of the input in pixels; that of the training if not given. A larger one gives finer maps.
    whole
        Show the network the whole image in its own shape, not the square in its middle.
    target
        The class that the gradient map is of; each image's likeliest if not given.
    device
        auto takes cuda, then mps, then cpu.
    threads
        CPU threads of the network; 0 is all.
    model
        The architecture of a --weights file that says nothing of itself: resnet18, for example.
    """
    from atnet.device import use_threads
    from atnet.errors import ConfigError, DataError
    from atnet.viz.explain import explain as run

    use_threads(threads)
    if not images:
        raise ConfigError("no image given: atnet explain IMAGE... --weights RUN")
    failures: list[DataError] = []
    done = run(
        list(images),
        weights,
        out=out,
        size=size,
        whole=whole,
        target=target,
        model=model,
        device=device,
        failed=failures.append,
    )
    console = Console(highlight=False)
    for one in done:
        _, name, share = one.top[0]
        said = f"{printable(one.image)}: {printable(name)}, {100 * share:.1f}%   Written: {one.drawn}"
        console.print(said, markup=False, soft_wrap=True)
    if done:
        console.print("Next: atnet explain IMAGE --target CLASS   (what speaks for another class)", soft_wrap=True)
    if failures:
        raise DataError("\natnet: ".join(map(str, failures)))
