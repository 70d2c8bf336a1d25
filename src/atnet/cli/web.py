"""`atnet web`"""

from pathlib import Path

from rich.console import Console

from atnet.files import quoted


def web(out: Path, /, *, weights: Path | None = None, data: str | None = None) -> None:
    """Write a web page that classifies images, in the browser: no server code, no image leaves the device.

    Parameters
    ----------
    out
        The folder, which must be absent or empty.
    weights
        An ONNX file of `atnet export`, or a run, a folder or a safetensors file, which is exported first, stored in 16
        bits; the newest run if not given, and before there is one, xxxs.general, which comes with AT-Net.
    data
        A folder of class folders to check that export on; the run's validation images if not given.
    """
    from atnet.export.web import write_web

    done = write_web(out, weights, data=data)
    console = Console(highlight=False)
    console.print(
        f"Written: {done.path} ({done.bytes / 1e6:.1f} MB, of which a browser loads {done.loaded / 1e6:.1f} MB, "
        f"compressed): {done.classes:,} classes at {done.size} px\n"
        f"Next: python -m http.server --directory {quoted(done.path)}, and open http://localhost:8000",
        markup=False,
        soft_wrap=True,
    )
