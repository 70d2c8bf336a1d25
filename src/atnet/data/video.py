"""Frames of a video file or a camera, a second apart. Free of torch."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atnet.data.decode import MAX_PIXELS
from atnet.errors import DataError
from atnet.extras import require
from atnet.files import did_you_mean, open_regular

SUFFIXES = {".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm"}
"""By which a file that is named is taken for a video."""

APART = 1.0
"""Seconds between two frames."""

_MATROSKA, _AVI = b"\x1a\x45\xdf\xa3", b"AVI "
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
"""How videos begin: WebM as Matroska does, MP4 and MOV with the kind of a box after four bytes. FFmpeg would also read
lists of other files and addresses, whatever they are called."""


def is_video(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def count_frames(path: Path) -> int:
    """About how many `frames` are; 0 if that is not known, or it cannot be read."""
    import cv2

    try:
        with _opened(path) as capture:
            rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
            return max(int(count / rate / APART) + 1, 0) if rate > 0 and count > 0 else 0
    except DataError:
        return 0


def frames(path: Path) -> Iterator[tuple[float, Image.Image]]:
    """The first frame of each second and its time in seconds, RGB, upright.

    Raises DataError if it cannot be read, MissingExtraError without OpenCV.
    """
    import cv2

    wanted = 0.0
    with _opened(path) as capture:
        while capture.grab():
            seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if seconds + 1e-3 < wanted:
                continue
            there, pixels = capture.retrieve()
            if there:
                yield seconds, _image(pixels)
                wanted = max(wanted, seconds) // APART * APART + APART
    if not wanted:
        raise DataError(f"{path}: no frame of this video can be read; save it as MP4")


def camera_frames(number: int) -> Iterator[tuple[float, Image.Image]]:
    """What a camera sees, a frame a second, until it is closed; seconds since the first.

    Raises DataError if there is no such camera, MissingExtraError without OpenCV.
    """
    require("video")
    import cv2

    with _released(cv2.VideoCapture(number)) as capture:
        if not capture.isOpened():
            raise DataError(f"camera {number}: cannot be opened; the first one is 0: is it plugged in, and free?")
        began = wanted = time.monotonic()
        while capture.grab():  # all of them, or the next one would be as old as those that wait
            if (now := time.monotonic()) < wanted:
                continue
            there, pixels = capture.retrieve()
            if there:
                yield now - began, _image(pixels)
                wanted += APART
    raise DataError(f"camera {number}: gives no more frames")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    require("video")
    import cv2

    try:
        with open_regular(path, 1 << 62, DataError) as file:
            begin = file.read(12)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such video{did_you_mean(path)}") from error
    if not (begin.startswith(_MATROSKA) or begin[8:12] == _AVI or begin[4:8] in _BOXES):
        raise DataError(f"{path}: not a whole MP4, MOV, AVI, Matroska or WebM video; convert or remove it")
    with _released(cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)) as capture:
        if not capture.isOpened():
            raise DataError(f"{path}: a damaged video, or one of another kind; save it as MP4")
        width, height = (int(capture.get(one)) for one in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > MAX_PIXELS:
            raise DataError(f"{path}: {width:,} x {height:,} pixels are more than the {MAX_PIXELS:,} allowed")
        yield capture


@contextlib.contextmanager
def _released(capture: Any) -> Iterator[Any]:
    try:
        yield capture
    finally:
        capture.release()


def _image(pixels: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1]))
