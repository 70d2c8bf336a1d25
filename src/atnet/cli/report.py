"""`atnet report`"""

from pathlib import Path

from rich.console import Console

from atnet.files import quoted


def report(run: Path = Path("runs/last"), /, *, out: Path | None = None) -> None:
    """Bind what a finished run left into one HTML page.

    Parameters
    ----------
    run
        The run's folder.
    out
        The file to write; report.html in the run's folder if not given.
    """
    from atnet.viz.report import write_report

    path = write_report(run, out)
    console = Console(highlight=False)
    console.print(
        f"Written: {path} ({path.stat().st_size / 1e6:.1f} MB), open it in a browser", markup=False, soft_wrap=True
    )
    console.print(f"Next: atnet compare {quoted(run)} OTHER_RUN", markup=False, soft_wrap=True)
