import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_image

import atnet
from atnet.cli import main
from atnet.config import make_config
from atnet.errors import ConfigError, WeightsError
from atnet.export.export import export, probabilities_apart
from atnet.exported.onnx import OnnxNetwork
from atnet.models.load import create_classifier, read_info
from atnet.training.optim import make_optimizers
from atnet.training.plan import configure, forecast, settle
from atnet.training.state import State
from atnet.training.transfer import freeze


@pytest.fixture(scope="module")
def pretrained(_digits, tmp_path_factory) -> Path:
    """A run on five of the ten digits."""
    root = tmp_path_factory.mktemp("pretrained")
    for part in ("train", "val"):
        for name in ("zero", "one", "two", "three", "four"):
            shutil.copytree(_digits / part / name, root / "five" / part / name)
    data = {
        "source": str(root / "five"),
        "size": 32,
        "crop_pct": 1.0,
        "mean": [0.1] * 3,
        "std": [0.3] * 3,
        "workers": 0,
    }
    options = {"model": "xxxs+registers=2", "epochs": 1, "batch": 20, "data": data}
    with contextlib.chdir(root):
        return atnet.train(**options, out="run").folder.absolute()


def test_weights_bring_model_size_and_colours_and_options_go_before_them(pretrained, five_digits):
    config = configure(weights=str(pretrained), data=str(five_digits))
    assert (config.model, config.data.size, config.data.crop_pct) == ("atnet_xxxs+registers=2", 32, 1.0)
    assert config.data.mean == (0.1, 0.1, 0.1)
    assert (config.optim.name, config.optim.lr, config.optim.layer_decay) == ("muon", 3e-3, 1.0)
    assert (config.batchnorm, config.batch, config.epochs, config.augment.crop_scale) == ("frozen", 32, 64, 0.2)
    given = configure(weights=str(pretrained), data=str(five_digits), augment={"crop_scale": 0.5, "flip": 0.0})
    assert (given.augment.crop_scale, given.augment.flip) == (0.5, 0.0)
    config = configure(weights=str(pretrained), data={"source": str(five_digits), "size": 48}, optim={"name": "adamw"})
    assert (config.data.size, config.data.crop_pct) == (48, 1.0)
    assert (config.optim.name, config.optim.lr) == ("adamw", 3e-4)
    assert configure(weights=str(pretrained), data=str(five_digits), optim={"lr": 5e-3}).optim.lr == 5e-3


@pytest.mark.parametrize("resize", ["letterbox", "squash"])
def test_what_shows_images_whole_leaves_nothing_out_and_travels_with_the_weights(resize, five_digits, tmp_path):
    data = {"source": str(five_digits), "size": 32, "workers": 0, "resize": resize}
    options = {"weights": "none", "batch": 20, "augment": {"crop_scale": 0.3}, "epochs": 1}
    assert configure(data=data | {"crop_pct": 0.9}, **options).data.crop_pct == 0.9
    run = atnet.train(data=data, **options, out=tmp_path / "run").folder
    assert (atnet.load(run)[1].preprocess.resize, atnet.load(run)[1].preprocess.crop_pct) == (resize, 1.0)
    config = configure(weights=str(run), data=str(five_digits))
    assert (config.data.resize, config.data.crop_pct) == (resize, 1.0)
    exported = export(run, preprocessing=True)
    assert exported.difference < 1e-2
    photo = Image.fromarray(load_sample_image("china.jpg")).crop((0, 100, 600, 300))
    answers = OnnxNetwork(exported.path).answer(photo), OnnxNetwork(export(run, run / "plain.onnx").path).answer(photo)
    assert probabilities_apart(*answers) < 1e-2


def test_training_goes_on_from_the_average_and_a_probe_is_fitted_first(pretrained, five_digits):
    config = settle(configure(weights=str(pretrained), data={"source": str(five_digits), "workers": 0}, batch=20))
    state = State(config)
    fresh = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    state.start_from_weights()
    before = load_file(pretrained / "ema.safetensors")
    for network in (state.model, state.ema.module):
        after = network.state_dict()
        assert after["head.weight"].shape == (5, 192)
        assert not torch.equal(after["head.weight"], fresh["head.weight"])
        assert torch.equal(after["head.weight"], state.model.head.weight), "the linear probe"
        assert [n for n in before if not n.startswith("head") and not torch.equal(after[n], before[n])] == []
    state.start_fine_tuning()
    for network in (state.model, state.ema.module):
        assert torch.equal(network.head.weight, fresh["head.weight"]), "fine-tuning begins with the head that was drawn"


def test_other_networks_are_fine_tuned_from_their_probe(pretrained, five_digits, monkeypatch):
    monkeypatch.setattr("atnet.training.transfer.is_ours", lambda model: False)
    state = State(settle(configure(weights=str(pretrained), data={"source": str(five_digits), "workers": 0}, batch=20)))
    state.start_from_weights()
    probe = state.model.head.weight.clone()
    state.start_fine_tuning()
    assert torch.equal(state.model.head.weight, probe)


def test_the_same_classes_keep_their_head(pretrained, five_digits):
    source = pretrained.parent / "five"
    state = State(settle(configure(weights=str(pretrained), data={"source": str(source), "workers": 0}, batch=20)))
    state.start_from_weights()
    assert torch.equal(state.model.head.weight, load_file(pretrained / "ema.safetensors")["head.weight"])


def test_from_the_command_line_and_resumed_without_the_weights(pretrained, five_digits, tmp_path, capsys, monkeypatch):
    weights = Path(shutil.copytree(pretrained, tmp_path / "weights"))
    words = ["train", "--weights", str(weights), "--data", str(five_digits), "--batch", "20", "--data.workers", "0"]
    main([*words, "--no-choose", "--epochs", "2", "--freeze", "stem", "--freeze", "conv_mix", "--out", "run"])
    record = json.loads(Path("run/record.json").read_text())
    assert (record["model"], record["size"], record["classes"]) == ("atnet_xxxs+registers=2", 32, 5)
    assert record["config"]["weights"] == "weights/ema.safetensors"
    before, after = load_file(weights / "ema.safetensors"), load_file("run/last.safetensors")
    assert not torch.equal(before["encoder.1.mlp.fc1.weight"], after["encoder.1.mlp.fc1.weight"])
    frozen = ("stem", "stages.1.blocks")
    moved = [n for n in after if n.startswith(frozen) and not torch.equal(before[n], after[n])]
    assert moved == []  # not its batch statistics either
    shutil.rmtree(weights)
    Path("run/record.json").unlink()
    main(["train", "--resume", "run"])
    assert json.loads(Path("run/record.json").read_text())["top1"] == record["top1"]


def test_all_but_the_head_is_frozen(digits):
    model = create_classifier("xxxs", classes=10, size=32)
    freeze(model, ("all",))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    assert len(make_optimizers(model, make_config(optim={"name": "muon"}).optim)) == 1  # Muon has no matrix left


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", ["xxxs", "mobilenetv3_small_100"])
def test_each_layer_learns_slower_than_the_next(name, optimizer):
    model = create_classifier(name, classes=10, size=64)
    optimizers = make_optimizers(model, make_config(optim={"name": optimizer, "layer_decay": 0.5}).optim)
    scale = {id(p): group["lr_scale"] for one in optimizers for group in one.param_groups for p in group["params"]}
    scales = [scale[id(p)] for p in model.parameters()]
    assert len(scale) == len(scales)
    first = next(p for n, p in model.named_parameters() if "token" not in n)
    last = list(model.get_classifier().parameters())[-1]
    assert scale[id(last)] == 1
    assert scale[id(first)] == min(scales) < 0.1
    if name == "xxxs":
        layers = [model.stem, *model.stages, *model.encoder, model.head]
        of_layers = [scale[id(next(layer.parameters()))] for layer in layers]
        assert of_layers == sorted(set(of_layers))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "xxs"}, ConfigError, "weights of atnet_xxxs.registers=2, and the run is of atnet_xxs: use --model"),
        ({"freeze": ["stam"]}, ConfigError, "--freeze stam: no such part of the network; use stem"),
        ({"freeze": ["all", "head"]}, ConfigError, "nothing is left to train; leave out head"),
        ({"freeze": ["stem", ""]}, ConfigError, "no such part"),
        ({"weights": "nowhere"}, WeightsError, "nowhere: no such run"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(
    pretrained, five_digits, options, error, message, tmp_path
):
    with pytest.raises(error, match=message):
        atnet.train(
            **{"weights": str(pretrained), "data": str(five_digits), "batch": 20, **options}, out=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()
    with pytest.raises(error, match=message):
        forecast(**{"weights": str(pretrained), "data": str(five_digits), "batch": 20, **options})


@pytest.mark.parametrize(
    ("images", "from_nothing", "from_weights"),
    [
        (25, (32, 100, 5), (32, 128, 7)),
        (300, (32, 85, 5), (32, 37, 2)),
        (1280, (64, 20, 1), (64, 20, 1)),
        (8000, (64, 20, 1), (64, 12, 1)),
        (100_000, (64, 20, 1), (64, 8, 1)),
    ],
)
def test_batch_and_epochs_follow_from_the_number_of_images(
    images, from_nothing, from_weights, monkeypatch, pretrained, tmp_path
):
    monkeypatch.setattr("atnet.training.transfer.open_parts", lambda *_: (range(images), ()))
    for weights, expected in (("", from_nothing), (str(pretrained), from_weights)):
        config = configure(weights=weights, data=str(tmp_path))
        assert (config.batch, config.epochs, config.eval_every) == expected
        config = configure(weights=weights, data=str(tmp_path), batch=16, epochs=20)
        assert (config.batch, config.epochs) == (16, 20)
        assert configure(weights=weights, data=str(tmp_path), epochs=7).batch == expected[0]
        assert configure(weights=weights, data=str(tmp_path), schedule={"cycle": 10}).epochs == 20


def test_a_training_begins_with_the_general_weights_of_its_size(five_digits, tmp_path, caplog):
    caplog.set_level("INFO", "atnet")
    data = {"source": str(five_digits), "size": 32, "workers": 0}
    for asked in (configure(data=data), configure(weights="auto", data=data)):
        assert (asked.batchnorm, asked.optim.lr, asked.augment.crop_scale) == ("frozen", 3e-3, 0.2)
        assert Path(settle(asked).weights).name == "xxxs.general.safetensors"
    assert configure(data=str(five_digits)).data.size == read_info("xxxs.general").preprocess.size
    for none in (
        {"weights": "none"},
        {"weights": ""},
        {"model": "s"},
        {"model": "xxxs+kernel=7"},
        {"model": "resnet18"},
    ):
        config = settle(configure(data=data, **none))
        assert (config.weights, config.batchnorm) == ("", "train")
    run = atnet.train(data=data, epochs=1, choose=False, out=tmp_path / "run")
    assert run.record["config"]["weights"] == "weights/xxxs.general.safetensors"
    assert "goes on from xxxs.general, 385 classes (random ones: --weights none)" in caplog.text
    assert make_config(run.folder / "config.yaml").weights.endswith("xxxs.general.safetensors")


def test_random_weights_are_written_down_as_none(quick, tmp_path):
    run = atnet.train(**quick, out=tmp_path / "run")
    assert run.record["config"]["weights"] == "none"
    assert "weights: none\n" in (run.folder / "config.yaml").read_text()
    assert make_config(run.folder / "config.yaml").weights == ""


def test_the_number_of_images_is_asked_once_and_in_silence(five_digits, capsys, caplog):
    (five_digits / "classes.txt").write_text("five\nsix\nseven\neight\nnine\n")
    assert configure(weights="none", data=str(five_digits)).epochs == 100
    assert caplog.text == ""
    assert (
        configure(weights="none", data=str(five_digits / "nowhere")).epochs == 20
    )  # a training says that it is not there
