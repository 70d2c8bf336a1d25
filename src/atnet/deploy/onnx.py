"""An exported network, run by ONNX Runtime. Free of torch."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from atnet.errors import ConfigError, WeightsError
from atnet.model.info import WeightsInfo, require_unchanged

MAX_BYTES = 2_000_000_000
ANSWERS = ("logits", "heads")
"""Outputs of an exported network: (N, classes); of several decision heads each one's (N, heads, classes)."""


class OnnxNetwork:
    """The network of an ONNX file that `atnet export` wrote, on the CPU.

    info: what the file says of itself.  Files that the model file refers to are not opened.
    Raises WeightsError if the file is no such file.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        if path.stat().st_size > MAX_BYTES:
            raise WeightsError(f"{path}: more than {MAX_BYTES:,} bytes are too many for an ONNX file")
        require_unchanged(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no base of their own
            said = str(error).strip().splitlines()[0]
            raise WeightsError(f"{path}: not an ONNX file, or a damaged one ({said})") from error
        self.info = WeightsInfo.from_metadata(self.session.get_modelmeta().custom_metadata_map, path)
        [self._image] = self.session.get_inputs()
        self._answers = [one.name for one in self.session.get_outputs() if one.name in ANSWERS]

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, classes) of normalised images (N, 3, size, size)."""
        return self._run(images)[0]

    def ask(self, picture: Image.Image) -> NDArray[np.float32]:
        """The logits of each decision head (heads, classes) for an RGB picture."""
        together, *each = self._run(self.info.preprocess(picture)[None])
        return each[0][0] if each else together

    def _run(self, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = self.session.run(self._answers, {self._image.name: images})
        return found


def require_cpu(device: str) -> None:
    """Raises ConfigError if another device is asked for: exported networks run on the CPU here."""
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device={device}: an ONNX file runs on the CPU here; use its weights for a GPU")
