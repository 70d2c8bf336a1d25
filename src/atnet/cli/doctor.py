"""`atnet doctor`"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.text import Text

from atnet.data.classes import printable

if TYPE_CHECKING:
    from atnet.eval.doctor import Diagnosis

MARKS = {"wrong": ("WRONG", "bold red"), "odd": ("odd  ", "yellow"), "fine": ("fine ", "green")}
MOST = 5


def doctor(
    source: str,
    /,
    *,
    out: Path | None = None,
    classes: str = "",
    mismatch: Literal["error", "ignore"] = "error",
    val_share: float = 0.2,
    max_bad: float = 0.01,
) -> None:
    """Examine a dataset before a day is lost: exit code 1 if something in it would corrupt a result.

    Parameters
    ----------
    source
        What `atnet train --data` takes.
    out
        The HTML page; doctor.html if not given, made anew each time.
    classes
        A text file with a class on each line, in the order of the labels.
    mismatch
        ignore leaves images of classes out that training lacks.
    val_share
        Share of each class held out for validation where the source has no validation part.
    max_bad
        Share of the training images that may be unreadable.
    """
    from atnet.errors import AtnetError
    from atnet.eval.doctor import examine
    from atnet.files import quoted, require_new
    from atnet.progress import duration
    from atnet.training.plan import forecast
    from atnet.viz.doctor import write_diagnosis

    path = out or Path("doctor.html")
    if out:
        require_new(path)
    found = examine(source, classes=classes, mismatch=mismatch, val_share=val_share, max_bad=max_bad)
    _print_findings(source, found)
    given = {"source": source, "classes": classes, "mismatch": "ignore", "val_share": val_share}
    advised = found.advice.settings
    try:
        made = forecast(**advised | {"data": given | advised["data"]})
        said = f"{made.config.epochs} epochs take about {duration(made.seconds)} here"
    except AtnetError as error:
        said = f"it cannot begin: {error}"
    write_diagnosis(found, path, said)
    console = Console(highlight=False)
    console.print(f"\nWritten: {path}, with images", markup=False, soft_wrap=True)
    command = f"atnet train --data {quoted(source)} {found.advice.command}".rstrip()
    console.print(
        f"Next: {command}   ({said})" if found.healthy else "Next: mend what is marked WRONG, then examine it again",
        markup=False,
        soft_wrap=True,
    )
    if not found.healthy:
        sys.exit(1)


def _print_findings(source: str, found: "Diagnosis") -> None:
    """Before the page is written: if the disk does not take that, they are not lost."""
    console = Console(highlight=False)
    train, val = found.parts["train"], found.parts["val"]
    console.print(
        f"{printable(source)}: {len(train):,} training and {len(val):,} validation images, "
        f"{len(train.classes):,} classes",
        markup=False,
        soft_wrap=True,
    )
    for finding in found.findings:
        mark, style = MARKS[finding.grave]
        console.print(Text.assemble((mark, style), "  ", printable(finding.what)), soft_wrap=True)
        if finding.grave != "fine":
            if finding.remedy:
                console.print(f"       {finding.remedy}", markup=False, soft_wrap=True)
            for line in finding.examples[:MOST]:
                console.print(f"       {printable(line)}", markup=False, soft_wrap=True)
            if len(finding.examples) > MOST:
                console.print(f"       and {len(finding.examples) - MOST:,} more", markup=False)
