import json

import pytest
import yaml
from safetensors import safe_open

import atnet
import atnet.cli
from atnet.config import make_config, to_yaml
from atnet.errors import ConfigError
from atnet.models.layout import Size
from atnet.models.legacy import current_fields, current_names
from atnet.models.sizes import SIZES
from atnet.weights.info import WEIGHTS

TEN = "xxxs.imagenette"


def test_tensors_of_version_0_1_have_their_names_of_now():
    with safe_open(WEIGHTS / f"{TEN}.safetensors", "pt") as opened:
        names = current_names(opened.keys())
    changed = {old: new for old, new in names.items() if old != new}
    assert changed["stem.2.depthwise.weight"] == "stages.0.blocks.0.depthwise.weight"
    assert changed["stem.4.conv.weight"] == "stages.1.downsample.conv.weight"
    assert changed["squeeze.reduce.1.weight"] == "stages.2.downsample.pointwise.weight"
    assert changed["trans_mix.1.attention.q.bias"] == "encoder.1.attention.q.bias"
    assert set(names.values()) == set(atnet.create_model("xxxs", num_classes=10).state_dict())
    assert current_names(names.values()) == {name: name for name in names.values()}


@pytest.mark.parametrize("name", ["seed_xxs", "author_2023"])
def test_a_stem_of_one_step_keeps_its_name(name):
    now = list(atnet.create_model(name, num_classes=2, device="meta").state_dict())
    before = [
        n.replace("stages.1.blocks.", "conv_mix.").replace("stages.2.position", "squeeze.position")
        .replace("encoder.", "trans_mix.")
        for n in now
    ]  # fmt: skip
    assert list(current_names(before).values()) == now


def test_fields_and_values_of_now_are_left_alone():
    changes = {"depths": (1, 2, 3), "kernel": 7}
    assert current_fields(SIZES["xxxs"], changes) == changes


def test_a_published_folder_of_version_0_1_has_arguments_that_are_understood():
    assert current_fields(SIZES["xxxs"], json.loads('{"late_mix": 9, "registers": 2}')) == {
        "depths": (2, 6, 9), "dims": (48, 96, 192), "strides": (4, 2, 2), "attention_depths": (0, 2),
        "convmixer": False, "registers": 2,
    }  # fmt: skip
    assert isinstance(SIZES["xxxs"], Size)


def test_a_recipe_with_an_option_that_is_gone_loads_if_it_had_no_effect(tmp_path):
    plain = yaml.safe_load(to_yaml(make_config(epochs=3)))
    plain["heads"] |= {"view_drop": 0.0, "penalty": 0.0}
    plain["distill"]["kind"] = "soft"
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(plain))
    assert make_config(tmp_path / "old.yaml") == make_config(epochs=3)
    plain["heads"]["penalty"] = 0.5
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(ConfigError, match=r"old.yaml: heads.penalty is gone.*version 0.1"):
        make_config(tmp_path / "old.yaml")


def test_an_option_that_is_gone_is_named_on_the_command_line(capsys):
    with pytest.raises(SystemExit):
        atnet.cli.main(["train", "--data", "digits", "--heads.view-drop", "0.5"])
    assert "--heads.view-drop is gone" in capsys.readouterr().err


def test_former_names_of_parts_are_those_of_now():
    model = atnet.create_model("xxxs", device="meta")
    assert model.conv_mix is model.stages[1].blocks
    assert model.late_mix is model.stages[2].blocks
    assert model.trans_mix is model.encoder
    assert not [name for name, _ in model.named_modules() if "mix" in name]


@pytest.mark.parametrize("name", ["stem.x", "stem." + "9" * 5000 + ".conv.weight", "stem..weight", "stem.²."])
def test_hostile_names_of_tensors_are_left_alone(name):
    names = ["squeeze.position.weight", "stem.0.conv.weight", "stem.1.conv.weight", name]
    assert current_names(names)[name] == name


def test_tensors_by_their_former_names_are_loaded_by_torch_and_timm_too():
    model = atnet.create_model("xxxs", num_classes=10)
    with safe_open(WEIGHTS / f"{TEN}.safetensors", "pt") as opened:
        old = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
    model.load_state_dict(old)
    assert model.state_dict()["encoder.0.attention.q.weight"].equal(old["trans_mix.0.attention.q.weight"])


def test_a_pruned_model_has_no_part_that_was_pruned():
    model = atnet.create_model("xxxs", num_classes=2)
    model.prune_intermediate_layers([0])
    assert not hasattr(model, "late_mix")
