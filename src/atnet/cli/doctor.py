"""`atnet doctor`"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from atnet.data.classes import printable
from atnet.weights.info import SHIPPED

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
    labels: Annotated[bool, Parameter(negative=())] = False,
    unlabelled: str = "",
    count: int = 50,
    weights: str = SHIPPED,
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
    labels
        Also list the labels that are probably wrong, by what a network sees in the images, in a CSV file and with
        images on the page.
    unlabelled
        Images without labels, a folder for example: those to label next are listed, the most instructive first.
    count
        How many to label next.
    weights
        What names the network that judges labels; the better it knows such images, the better it judges.
    """
    from atnet.errors import AtnetError, ConfigError
    from atnet.eval.doctor import examine
    from atnet.files import quoted, require_new
    from atnet.progress import counted, duration
    from atnet.training.labels import examine_labels
    from atnet.training.plan import forecast
    from atnet.viz.doctor import write_diagnosis, write_labels

    path = out or Path("doctor.html")
    if out:
        require_new(path)
    if count < 1:
        raise ConfigError(f"--count {count}: use 1 or more")
    found = examine(source, classes=classes, mismatch=mismatch, val_share=val_share, max_bad=max_bad)
    _print_findings(source, found)
    given = {"source": source, "classes": classes, "mismatch": "ignore", "val_share": val_share}
    advised = found.advice.settings
    try:
        made = forecast(**advised | {"data": given | advised["data"]})
        said = f"{made.config.epochs} epochs take about {duration(made.seconds)} here"
    except AtnetError as error:
        said = f"it cannot begin: {error}"
    judged, tables = None, []
    if labels or unlabelled:
        judged = examine_labels(found.parts, weights, unlabelled=unlabelled, count=count)
        tables = write_labels(judged, path)
    write_diagnosis(found, path, said, judged)
    console = Console(highlight=False)
    if judged is not None:
        console.print(
            f"labels   about {100 * judged.rate:.1f}% of {counted(judged.judged, 'label')} are wrong by {weights}; "
            f"{len(judged.doubtful):,} to look at",
            markup=False,
            soft_wrap=True,
        )
    written = ", ".join(map(str, [path, *tables]))
    console.print(f"\nWritten: {written}", markup=False, soft_wrap=True)
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
