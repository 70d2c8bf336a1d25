"""A dataset as a map: its images on a plane, like ones near each other."""

import io
import logging
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.font_manager import findfont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from atnet.errors import ConfigError, DataError
from atnet.files import write_whole
from atnet.inference.embed import Embedding, on_plane
from atnet.progress import counted, progress_bar
from atnet.viz.plots import NAMED, drawable

log = logging.getLogger("atnet")

MOST = 4000
"""Most images that are laid out, spread over all: the layout's time grows with their number."""

MOST_CELLS, CELL, FRAME, MARGIN, LETTERS = 32, 52, 3, 16, 22
"""Cells along a side; pixels."""


def draw_map(embedding: Embedding, path: Path) -> None:
    """Draws the images as a PNG: laid out by `on_plane`, in each cell of a grid the one nearest its middle.

    A frame's colour is the class's, whose name stands amid its images where there are no more than 40 classes.
    Raises ConfigError if the file cannot be written.
    """
    images = [(part, i) for part in embedding.parts.values() for i in range(len(part))]
    some = np.linspace(0, len(images) - 1, min(MOST, len(images))).round().astype(int).tolist()
    images = [images[k] for k in some]
    every = [name for *_, name in embedding.rows()]
    names = [every[k] for k in some]
    colours = _colours(names)
    cells = int(np.clip(np.sqrt(len(some)), 3, MOST_CELLS))
    log.info("lays %s out on a plane", counted(len(some), "image"))
    places = _spread(on_plane(embedding.vectors[some])) * cells
    width, height = (2 * MARGIN + CELL * np.ceil(places.max(0) + 1e-6).clip(1)).astype(int).tolist()
    sheet = Image.new("RGB", (width, height), "white")
    shown = _in_cells(places)
    with progress_bar("Drawing", len(shown)) as advance:
        for (column, row), k in shown.items():
            advance(1)
            part, i = images[k]
            try:
                image = ImageOps.fit(part.read(i), (CELL - 2 * FRAME, CELL - 2 * FRAME))
            except DataError:  # it could be read before; the file has gone since
                continue
            framed = ImageOps.expand(image, FRAME, colours[names[k]])
            sheet.paste(framed, (MARGIN + column * CELL, MARGIN + row * CELL))
    if len(colours) <= NAMED:
        _write_names(sheet, names, places, colours)
    written = io.BytesIO()
    sheet.save(written, "PNG")
    try:
        write_whole(path, written.getvalue())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another --map") from error


def _spread(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """The places from 0 on, those of the longer side up to 1."""
    spread: NDArray[np.float32] = (plane - plane.min(0)) / (np.ptp(plane, axis=0).max() or 1)
    return spread


def _in_cells(places: NDArray[np.float32]) -> dict[tuple[int, int], int]:
    """By column and row of each cell that is not empty, which of the places in it is nearest its middle."""
    corners = np.floor(places.clip(None, np.ceil(places.max(0)) - 1e-6)).astype(int)
    off = np.linalg.norm(places - corners - 0.5, axis=1)
    found: dict[tuple[int, int], int] = {}
    for k in np.argsort(-off, kind="stable").tolist():  # the nearest comes last, and stays
        found[corners[k, 0].item(), corners[k, 1].item()] = k
    return found


def _colours(names: list[str]) -> dict[str, tuple[int, ...]]:
    """A colour for each class; after twenty classes they come again."""
    palette = [tuple(map(int, colour)) for colour in colormaps["tab20"](range(20), bytes=True)[:, :3]]
    strong_first = palette[::2] + palette[1::2]
    return {name: strong_first[i % len(palette)] for i, name in enumerate(sorted(set(names)))}


def _write_names(
    sheet: Image.Image, names: list[str], places: NDArray[np.float32], colours: dict[str, tuple[int, ...]]
) -> None:
    """Each class's name on its colour, at the median of its places."""
    pen, font = ImageDraw.Draw(sheet), ImageFont.truetype(findfont("DejaVu Sans:bold"), LETTERS)
    label = np.array(names)
    for name, colour in colours.items():
        if not name:
            continue
        x, y = (MARGIN + CELL * np.median(places[label == name], axis=0)).tolist()
        words = drawable(name, 24)
        left, top, right, bottom = pen.textbbox((x, y), words, font, anchor="mm")
        shift = max(MARGIN - left, 0) - max(right - (sheet.width - MARGIN), 0)
        box = (left + shift - 8, top - 6, right + shift + 8, bottom + 6)
        pen.rounded_rectangle(box, 6, fill=colour, outline="white", width=2)
        pen.text((x + shift, y), words, "white" if sum(colour) < 480 else "black", font, anchor="mm")
