"""`atnet replay`"""

from pathlib import Path

from rich.console import Console


def replay(run: Path, step: int) -> None:
    """Play a step again that was not taken, because something in it was not finite.

    Parameters
    ----------
    run
        The run's folder, runs/last for the newest.
    step
        A step that its faults/faults.csv names.
    """
    from atnet.files import resolve_run
    from atnet.training.faults import replay as play

    found = play(resolve_run(run), step)
    console = Console(highlight=False)
    lines = [
        f"Step {found.step}: {found.fault or 'all is finite here, where it was not: another machine or version?'}",
        f"loss      {found.loss:g}",
        f"layer     {found.layer or 'the output of every one is finite'}",
        f"gradients {', '.join(found.gradients[:5]) or 'all finite'}"
        + (f" and {len(found.gradients) - 5} more" if len(found.gradients) > 5 else ""),
        f"images  {found.images[0]} and {len(found.images) - 1} more",
    ]
    console.print("\n".join(lines), markup=False, soft_wrap=True)
    console.print("Nothing was written. Next: look at these images, or lower --optim.lr", soft_wrap=True)
