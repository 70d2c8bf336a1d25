"""A static page that says what images show: the network runs in the browser, and no image leaves the device."""

import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import onnx

from atnet.data.classes import printable
from atnet.data.decode import MAX_ASPECT, MAX_BYTES, MAX_PIXELS
from atnet.errors import ConfigError
from atnet.export.runtime import find_runtime
from atnet.exported.onnx import OnnxNetwork
from atnet.inference.prediction import weights_to_ask
from atnet.models.sizes import layout_of
from atnet.weights.find import Source
from atnet.weights.info import WeightsInfo

PAGE = Path(__file__).parent / "page"
RUNTIME = "onnxruntime-web"


@dataclass(frozen=True, kw_only=True)
class Web:
    """The folder of the page.  bytes: on disk.  loaded: bytes that a browser loads, compressed by gzip."""

    path: Path
    classes: int
    size: int
    bytes: int
    loaded: int


def write_web(out: str | Path, weights: str | Path | Source | None = None, *, data: str | None = None) -> Web:
    """Writes the page to a folder; any web server makes a site of it.

    weights: an ONNX file of `atnet export`, taken as it is; or a run, a folder or a safetensors file, which is exported
    with numbers of 16 bits; None: see `weights_to_ask`.
    data: a folder of class folders to check that export on, the run's validation images if None.
    Raises ConfigError if there is something in out, it cannot be written, or the installation lacks what runs the
    network in the browser; WeightsError on unusable weights.
    """
    path = Path(out).expanduser()
    runtime = find_runtime()
    source = weights_to_ask(weights)
    with whole_folder(path) as page:
        shutil.copytree(PAGE, page, dirs_exist_ok=True)
        model = page / "model.onnx"
        if source.path.suffix == ".onnx":
            network = OnnxNetwork(source.path)
            network.require_images("the page")
            shutil.copyfile(source.path, model)
        else:
            from atnet.export.export import export

            export(source, model, half=True, data=data)
            network = OnnxNetwork(model)
        info = network.info
        grid = _give_attention(model, info)
        (page / "network.json").write_text(json.dumps(_about(info) | {"grid": grid}, allow_nan=False), encoding="utf-8")
        loaded = list(page.iterdir())
        shutil.copytree(runtime, page / RUNTIME)
        loaded += (page / RUNTIME).glob("ort.*")
        shutil.copy(str(files("onnxruntime") / "ThirdPartyNotices.txt"), page / RUNTIME)
        sizes = {file: file.stat().st_size for file in page.rglob("*") if file.is_file()}
        compressed = sum(len(gzip.compress(file.read_bytes(), 6)) for file in loaded)
    return Web(
        path=path, classes=len(info.classes), size=info.preprocess.size, bytes=sum(sizes.values()), loaded=compressed
    )


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, which gets its name when all is written; else nothing is left.

    Raises ConfigError if there is something in it, or it cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path}: exists and is not empty; choose another folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as place:
            folder = Path(place, "folder")
            folder.mkdir()
            yield folder
            if path.exists():
                path.rmdir()
            os.replace(folder, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from error


def _give_attention(path: Path, info: WeightsInfo) -> list[int] | None:
    """Makes the last layer's attention an output of the ONNX file, (1, heads, class and registers, tokens).

    Returns the tokens' layout, [before the places, rows, columns]; None of a network of timm's, or one without
    attention, which is left as it is.
    """
    size, model = layout_of(info.model), onnx.load(path)
    found = [node.output[0] for node in model.graph.node if node.op_type == "Softmax"]
    if size is None or not found:
        return None
    if found[-1] not in {one.name for one in model.graph.output}:  # a page's file may be given again
        model.graph.output.append(onnx.helper.make_tensor_value_info(found[-1], onnx.TensorProto.FLOAT, None))
        onnx.save(model, path)
    side = size.grid(info.preprocess.size)
    return [1 + size.registers, side, side]


def _about(info: WeightsInfo) -> dict[str, object]:
    """What the page has to know of the network, and which images it is to refuse."""
    return {
        "model": printable(info.model),
        "classes": [printable(name) for name in info.class_names],
        "preprocess": asdict(info.preprocess),
        "limits": {"bytes": MAX_BYTES, "pixels": MAX_PIXELS, "aspect": MAX_ASPECT},
    }
