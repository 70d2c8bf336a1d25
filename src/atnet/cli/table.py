"""`atnet table`"""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console


def table(
    *,
    add: Annotated[tuple[Path, ...], Parameter(consume_multiple=True, negative=())] = (),
    results: Path = Path("results"),
    readme: Path = Path("docs/results.md"),
    plot: Annotated[Path, Parameter(alias="--picture")] = Path("docs/accuracy.png"),
) -> None:
    """Make the published table and its plot from the records under results/.

    Parameters
    ----------
    add
        Finished runs whose records are published first.
    results
        The records' folder.
    readme
        The Markdown file with the table's markers.
    plot
        Accuracy over parameters, for the dataset and input size with the most rows; a PNG.
    """
    from atnet.study.table import add_record, points_of, read_results, write_table
    from atnet.viz.plots import draw_accuracy

    written = [add_record(run, results) for run in add]
    found = read_results(results)
    write_table(found, readme, plot)
    if found:
        title, points = next(iter(points_of(found).items()))
        draw_accuracy(title, points, plot)
    console = Console(highlight=False)
    for path in [*written, readme, plot]:
        if path.exists():
            console.print(f"Written: {path}", markup=False, soft_wrap=True)
    console.print("Next: git diff, and commit what is right")
