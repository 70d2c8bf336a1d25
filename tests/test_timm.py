"""Our models as timm's, for whoever uses timm alone."""

import subprocess
import sys

import pytest
import timm
import torch

import atnet
import atnet.timm
from atnet.models import registry
from atnet.weights import info as weights_info

TEN, GENERAL = "xxxs.imagenette", "xxxs.general"

SCRIPT = """
import argparse
import timm, torch
from timm.optim import create_optimizer_v2
from helper import STEPS

parser = argparse.ArgumentParser()
parser.add_argument("--model")
parser.add_argument("--num-classes", type=int)
args = parser.parse_args()

if __name__ == "__main__":
    model = timm.create_model(args.model, num_classes=args.num_classes)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1)
    for _ in range(STEPS):
        loss = torch.nn.functional.cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1]))
        loss.backward()
        optimizer.step()
    print(type(model).__name__, model.num_classes, __file__.endswith("train.py"))
"""


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "atnet.timm", *map(str, words)], capture_output=True, text=True)


def test_the_weights_that_come_with_the_package_are_a_tag_of_their_size():
    assert f"atnet_{TEN}" in timm.list_models(pretrained=True)
    assert timm.list_models("atnet_*", pretrained=True) == [f"atnet_{GENERAL}", f"atnet_{TEN}"]
    model = timm.create_model(f"atnet_{TEN}", pretrained=True).eval()
    ours, info = atnet.load(TEN)
    image = torch.randn(1, 3, 160, 160)
    assert torch.equal(model(image), ours(image))
    assert model.pretrained_cfg["label_names"] == info.class_names
    config = timm.data.resolve_model_data_config(model)
    assert (config["input_size"], config["crop_pct"]) == ((3, 160, 160), 0.9)


def test_what_a_killed_export_left_beside_the_weights_is_none(tmp_path, monkeypatch):
    (tmp_path / ".partial.safetensors").write_bytes(b"short")
    monkeypatch.setattr(weights_info, "WEIGHTS", tmp_path)
    registry._add_shipped()
    assert timm.list_models("atnet_*", pretrained=True) == [f"atnet_{GENERAL}", f"atnet_{TEN}"]


def test_a_size_without_the_tag_is_as_before():
    model = timm.create_model("atnet_xxxs")
    assert (model.num_classes, model.pretrained_cfg["input_size"]) == (1000, (3, 224, 224))
    with pytest.raises(RuntimeError, match="No pretrained weights exist for atnet_xxxs"):
        timm.create_model("atnet_xxxs", pretrained=True)


def test_the_tags_weights_go_under_another_head_or_none():
    model = timm.create_model(f"atnet_{TEN}", pretrained=True, num_classes=37)
    assert model.head.weight.shape == (37, 192)
    levels = timm.create_model(f"atnet_{TEN}", pretrained=True, features_only=True)
    ours, _ = atnet.load(TEN)
    assert torch.equal(model.stem[0].conv.weight, ours.stem[0].conv.weight)
    assert torch.equal(levels.model.stem[0].conv.weight, ours.stem[0].conv.weight)


def test_a_script_of_timms_kind_runs_with_our_models(tmp_path):
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "train.py"
    script.write_text(SCRIPT)
    (tmp_path / "scripts" / "helper.py").write_text("STEPS = 2\n")
    done = run(script, "--model", "atnet_xxxs", "--num-classes", 3)
    assert (done.returncode, done.stdout) == (0, "ATNet 3 True\n"), done.stderr


def test_a_script_that_is_not_there_is_named():
    done = run("train.py", "--model", "atnet_xxxs")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "atnet.timm: train.py: no such script; timm's train.py and validate.py are not in its"
    )


def test_names_can_be_imported_as_timms_can():
    from atnet.timm import atnet_xxs_star

    assert atnet_xxs_star(num_classes=3).num_classes == 3


def test_the_peer_convmixer_has_the_parameters_of_xxxs():
    sizes = [
        sum(p.numel() for p in timm.create_model(name, num_classes=0).parameters())
        for name in ("convmixer_256_19", "atnet_xxxs")
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
    assert timm.create_model("convmixer_256_19", num_classes=7)(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_the_module_has_what_it_had_when_it_was_a_package():
    names = ("default_cfgs", "pretrained_cfg", "CONVMIXER", "atnet_xxxs", "atnet_s_star", "convmixer_256_19")
    assert [name for name in names if not hasattr(atnet.timm, name)] == []
