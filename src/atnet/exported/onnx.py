"""An exported network, run by ONNX Runtime. Free of torch."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from atnet.errors import ConfigError, DataError, WeightsError
from atnet.exported.contract import ANSWERS
from atnet.exported.trial import require_survivable
from atnet.weights.info import INFINITE, WEIGHTS, WeightsInfo, read_unchanged

MAX_BYTES = 500_000_000


class OnnxNetwork:
    """The network of an ONNX file that `atnet export` wrote, on the CPU.

    info: what the file says of itself.  takes_images: whether its input is an image as it is, not normalised images.
    batch: images at a time, at most.
    The file may come from anyone, unless it is trusted: see `require_survivable`.
    Raises WeightsError if the file is no such file.
    """

    def __init__(self, path: Path, threads: int = 0, batch: int = 1, *, trusted: bool = False) -> None:
        content = read_unchanged(path, MAX_BYTES)
        if not trusted and path.parent != WEIGHTS:  # ours is as trusted as this code, and opens faster
            require_survivable(content, path, batch, threads)
        self.path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no base of their own
            said = " ".join(str(error).split())[:300]
            raise WeightsError(f"{path}: not an ONNX file, or a damaged one ({said})") from error
        self.info = WeightsInfo.from_metadata(self.session.get_modelmeta().custom_metadata_map, path)
        [self._entry] = self.session.get_inputs()
        self.takes_images = self._entry.type == "tensor(uint8)"
        outputs = {one.name for one in self.session.get_outputs()}
        self._answers = [name for name in ANSWERS if name in outputs]

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, classes) of normalised images (N, 3, size, size), as they are: see `require_finite`.

        Raises DataError if it does not run on them, so that a server can go on with others.
        """
        try:
            return self._run(images)[0]
        except WeightsError as error:
            raise DataError(str(error)) from error

    def ask(self, image: Image.Image) -> NDArray[np.float32]:
        """The logits of each decision head (heads, classes) for an RGB image."""
        together, *each = self.answer(image)
        return np.stack(each or [together])

    def answer(self, image: Image.Image) -> NDArray[np.float32]:
        """What the network says of an RGB image: logits (1, classes); of several heads each one's too, below."""
        found: NDArray[np.float32] = self.answers(
            np.asarray(image) if self.takes_images else self.info.preprocess(image)[None]
        )[0]
        return found

    def answers(self, given: NDArray[np.float32] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """The network's logits of images, and of several heads each one's after them: (N, 1 or 1 + heads, classes).

        Raises WeightsError if it does not run on them, or they are not finite.
        """
        together, *each = self._run(given)
        found: NDArray[np.float32] = np.concatenate([together[:, None], *each], axis=1)
        if not np.isfinite(found).all():
            raise WeightsError(f"{self.path}: {INFINITE}")
        return found

    def require_images(self, what: str) -> None:
        """Raises WeightsError if it takes images, one by one.  what: what needs batches of images of one size."""
        if self.takes_images:
            raise WeightsError(
                f"{self.path}: takes whole images, and {what} prepares them itself; export the weights without "
                "--with-preprocessing for it"
            )

    def _run(self, given: NDArray[np.float32] | NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        try:
            found: list[NDArray[np.float32]] = self.session.run(self._answers, {self._entry.name: given})
        except Exception as error:  # its errors have no base of their own
            said = " ".join(str(error).split())[:300]
            raise WeightsError(f"{self.path}: does not run on this image ({said}); export its weights again") from error
        return found


def require_finite(logits: NDArray[np.float32]) -> None:
    """Raises DataError unless a network's answers to an image are numbers that can be compared."""
    if not np.isfinite(logits).all():
        raise DataError(f"the network can't tell: {INFINITE}")


def require_cpu(device: str) -> None:
    """Raises ConfigError if another device is asked for: exported networks run on the CPU here."""
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device={device}: an ONNX file runs on the CPU here; use its weights for a GPU")
