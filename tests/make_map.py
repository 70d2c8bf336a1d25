"""`python make_map.py docs/map.md`: what each file of the package is about, by the first lines of their docstrings."""

import ast
import sys
from pathlib import Path

from test_layers import LAYERS, SOURCE


def about(path: Path) -> str:
    """The first paragraph of a module's docstring, on one line; "" if it has none."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


def make_map() -> str:
    lines = [
        "# Where things are",
        "",
        "The packages from top to bottom; each imports only what stands below it (`tests/test_layers.py`). An image's way",
        "is upwards: data, models, eval, run. Made by `make reference` from the modules' docstrings.",
    ]
    for layer in LAYERS:
        folder = SOURCE / layer
        files = (
            [folder / "__init__.py", *sorted(folder.glob("[!_]*.py"))]
            if folder.is_dir()
            else [folder.with_suffix(".py")]
        )
        told = [
            f"| `{file.relative_to(SOURCE.parent.parent).as_posix()}` | {about(file)} |"
            for file in files
            if about(file)
        ]
        if told:
            lines += ["", f"## {layer}", "", "| file | about |", "|---|---|", *told]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(make_map(), encoding="utf-8")
    print(f"Written: {sys.argv[1]}")
