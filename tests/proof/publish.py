"""`make proof-publish`: the built wheel in a new environment; then, without a network, what it publishes by four ways.

python publish.py PHOTOS: PHOTOS is a folder with train/ and val/. The wheel, what it needs as constraints.txt has
it, and transformers are installed into a temporary folder; TORCH_INDEX, as for make, is where torch comes from. A line
a point, with its figures; exit code 1 if a point fails.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
TRANSFORMERS = "5.23.0"
TEN = "xxxs.imagenette"
NAMES = {"n01440764": "tench", "n03394916": "French horn", "n03445777": "golf ball"}
TOLERANCE = 1e-6
Finding = tuple[bool, str]

RANDOM = """
import sys
from pathlib import Path
import torch
from atnet.data.preprocess import Preprocess
from atnet.weights.info import WeightsInfo
from atnet.models.load import create_classifier, to_safetensors
torch.manual_seed(0)
path, model = sys.argv[1:]
names = tuple(f"class {i}" for i in range(7))
made = Preprocess(size=96, crop_pct=0.9, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
info = WeightsInfo(
    model=model, classes=names, class_names=names, preprocess=made, epoch=1, moving_average=False
)
Path(path).write_bytes(to_safetensors(create_classifier(model, classes=7, size=96).state_dict(), info))
"""


def say_four_ways(folder: str, images: list[str]) -> None:
    """Run in the new environment: names and logits of each image by three libraries, as JSON."""
    import timm
    import torch
    from PIL import Image
    from transformers import pipeline

    import atnet
    import atnet.timm
    from atnet.data.decode import decode

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    names = model.pretrained_cfg["label_names"]
    pipe = pipeline("image-classification", model=folder)
    ours, info = atnet.load(folder)
    said: list[dict[str, Any]] = []
    for path in images:
        with torch.inference_mode(), Image.open(path) as image:
            by_timm = model(transform(image.convert("RGB"))[None])[0].tolist()
            by_atnet = ours(torch.from_numpy(info.preprocess(decode(Path(path))))[None])[0].tolist()
        by_pipe = {found["label"]: found["score"] for found in pipe(path, top_k=len(names), function_to_apply="none")}
        said.append(
            {
                "timm": dict(zip(names, by_timm, strict=True)),
                "transformers": by_pipe,
                "atnet": dict(zip(info.class_names, by_atnet, strict=True)),
            }
        )
    print(json.dumps(said))


def shares(logits: dict[str, float]) -> dict[str, float]:
    """Probabilities."""
    most = max(logits.values())
    raised = {name: math.exp(logit - most) for name, logit in logits.items()}
    return {name: share / sum(raised.values()) for name, share in raised.items()}


class Proof:
    """A new environment, and commands in it that reach no network."""

    def __init__(self, photos: Path, folder: Path) -> None:
        self.photos, self.folder = photos, folder
        self.python = folder / "venv" / "bin" / "python"
        self.images = [str(sorted(place.iterdir())[0]) for place in sorted((photos / "val").iterdir())][:10]

    def install(self) -> Finding:
        pip = [sys.executable, "-m", "pip", "--quiet"]
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", self.folder, ROOT], check=True)
        [wheel] = self.folder.glob("atnet-*.whl")
        venv.create(self.folder / "venv", with_pip=True)
        pip = [str(self.python), "-m", "pip", "--quiet", "install", "--no-compile"]
        constrained = [*pip, "--constraint", str(ROOT / "constraints.txt")]
        if index := os.environ.get("TORCH_INDEX"):
            subprocess.run([*constrained, "--index-url", index, "torch", "torchvision"], check=True)
        subprocess.run([*constrained, f"{wheel}[export,serve]", f"transformers=={TRANSFORMERS}"], check=True)
        self.offline = []
        if subprocess.run(["unshare", "--net", "--map-root-user", "true"], capture_output=True).returncode == 0:
            self.offline = ["unshare", "--net", "--map-root-user"]
        code = "import socket; socket.create_connection(('127.0.0.1', 9))"
        reached = subprocess.run([*self.offline, str(self.python), "-c", code], capture_output=True, text=True)
        how = "no network but an empty namespace" if self.offline else "HF_HUB_OFFLINE and proxies that refuse"
        return reached.returncode != 0, f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB; then {how}"

    def run(self, *words: object) -> str:
        """What a command in the new environment prints, without a network."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
        refused = "http://127.0.0.1:9"
        variables |= {
            "HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "hf"), "HTTP_PROXY": refused, "HTTPS_PROXY": refused,
        }  # fmt: skip
        done = subprocess.run(
            [*self.offline, str(self.python), *map(str, words)],
            capture_output=True, text=True, cwd=self.folder, env=variables,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"{' '.join(map(str, words))[:200]}\n{done.stderr}")
        return done.stdout

    def predict(self) -> Finding:
        asked = self.folder / "asked"
        asked.mkdir()
        for code in NAMES:
            shutil.copy(sorted((self.photos / "val" / code).iterdir())[1], asked / f"{code}.JPEG")
        answers = json.loads(self.run("-m", "atnet", "predict", asked, "--json"))
        found = {Path(answer["image"]).stem: answer["top"][0] for answer in answers}
        told = ", ".join(f"{top['name']} {100 * top['probability']:.0f}%" for top in found.values())
        return {code: top["name"] for code, top in found.items()} == NAMES, told

    def four_ways(self, weights: str) -> Finding:
        published = self.folder / f"published-{Path(weights).stem}"
        self.run("-m", "atnet", "publish", "--weights", weights, "--to", published)
        said = json.loads(self.run(Path(__file__), "--ways", published, *self.images))
        answers = json.loads(
            self.run("-m", "atnet", "predict", *self.images, "--weights", published, "--json", "--top", 1000)
        )
        worst, names, apart = 0.0, True, 0.0
        for ways, answer in zip(said, answers, strict=True):
            ours = ways["atnet"]
            for theirs in (ways["timm"], ways["transformers"]):
                names &= theirs.keys() == ours.keys()
                worst = max(worst, *(abs(theirs[name] - ours[name]) for name in ours))
            command = {top["name"]: top["probability"] for top in answer["top"]}
            names &= command.keys() == ours.keys()
            apart = max(apart, *(abs(share - command[name]) for name, share in shares(ours).items()))
        return (
            names and worst <= TOLERANCE and apart <= TOLERANCE,
            f"{len(said)} photos, {len(ours)} classes: logits apart by {worst:.1e}, the command's "
            f"probabilities, of six digits, by {apart:.1e}, names {'the same' if names else 'NOT the same'}",
        )

    def shipped(self) -> Finding:
        return self.four_ways(TEN)

    def random(self, model: str) -> Finding:
        weights = self.folder / f"{model.partition('+')[0]}.safetensors"
        self.run("-c", RANDOM, weights, model)
        return self.four_ways(str(weights))


POINTS: dict[str, Callable[[Proof], Finding]] = {
    "the built wheel, installed anew": Proof.install,
    "atnet predict names three photos right": Proof.predict,
    f"{TEN} by four ways": Proof.shipped,
    "a changed size by four ways": lambda proof: proof.random("atnet_xxxs+kernel=3+registers=2"),
    "a peer with one input size by four ways": lambda proof: proof.random("deit_tiny_patch16_224"),
}


def main(photos: Path) -> None:
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        proof = Proof(photos, Path(folder))
        for claim, prove in POINTS.items():
            fine, found = prove(proof)
            failed += not fine
            print(f"{'yes' if fine else 'NO '}  {claim}: {found}", flush=True)
    sys.exit(f"{failed} points failed" if failed else 0)


if __name__ == "__main__":
    if sys.argv[1] == "--ways":
        say_four_ways(sys.argv[2], sys.argv[3:])
    else:
        main(Path(sys.argv[1]).resolve())
