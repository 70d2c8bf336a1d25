import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from atnet import extras
from atnet.errors import MissingExtraError
from atnet.inference.prediction import weights_to_ask


def test_a_missing_extra_is_named_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda module: None if module == "onnxruntime" else module)
    with pytest.raises(MissingExtraError, match=r"needs onnxruntime, .*pip install 'atnet\[serve\]'"):
        extras.require("serve")
    assert weights_to_ask("xxxs.imagenette").path.suffix == ".safetensors", "torch answers where ONNX Runtime is not"


def test_each_extra_brings_the_modules_that_it_is_for():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for extra, modules in extras.EXTRAS.items():
        brought = {line.partition(">")[0].replace("-", "_") for line in project["optional-dependencies"][extra]}
        assert brought - {"opencv_python_headless"} == set(modules) - {"cv2"}
    assert not {line.partition(">")[0] for line in project["dependencies"]} & {"onnx", "onnxruntime", "uvicorn"}


WITHOUT = (
    "import sys; sys.modules['onnxscript'] = None\n"
    "import importlib.util as util; real = util.find_spec\n"
    "util.find_spec = lambda name, *more: None if name == 'onnxscript' else real(name, *more)\n"
)
"""Makes an interpreter one that has not got onnxscript."""


def test_a_command_whose_extra_is_missing_ends_with_one_line():
    code = f"{WITHOUT}from atnet.cli import main; main(['export', '--weights', 'xxxs.imagenette'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'atnet[export]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_networks_are_run_with_what_the_server_brings():
    """onnxscript, which the extra serve has not, is for writing them."""
    code = (
        f"{WITHOUT}"
        "import atnet.serve.app, atnet.serve.serve, atnet.exported.onnx\n"
        "from atnet.inference.prediction import weights_to_ask\n"
        "print(weights_to_ask('xxxs.imagenette').path.suffix)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == ".onnx", done.stderr


def test_a_photo_is_answered_where_no_extra_is_installed(digits):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('onnx', 'onnxruntime', 'onnxscript')))\n"
        "import importlib.util as util; real = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name.startswith('onnx') else real(name, *more)\n"
        f"from atnet.cli import main; main(['predict', {str(min((digits / 'val').rglob('*.png')))!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "knows 385 kinds of things" in done.stdout
