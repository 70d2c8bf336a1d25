"""Networks that AT-Net did not train, by each name and from each file, against what timm makes of the same tensors."""

import argparse
import io
import json
import os
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save
from timm.data import ImageNetInfo, resolve_model_data_config

import atnet
from atnet.cli import main
from atnet.errors import ConfigError, HubError, WeightsError
from atnet.models.load import architecture_of, load_any, read_info
from atnet.models.registry import pretrained_cfg
from atnet.training.plan import configure, settle
from atnet.training.transfer import from_random_weights
from atnet.weights.find import find_weights
from atnet.weights.info import MAX_CONFIG_BYTES, sha256_of

NETWORK, TAG = "mobilenetv3_small_050", "lamb_in1k"
NAMES = ("church", "horn", "ball", "truck", "tench")


def network(name: str = NETWORK, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 5} | options).eval()


def config_of(model: torch.nn.Module, **change) -> bytes:
    """config.json as timm writes it."""
    said = {"architecture": model.pretrained_cfg["architecture"], "num_classes": model.num_classes}
    settings = {"mean": [0.4] * 3, "std": [0.2] * 3, "input_size": [3, 96, 96], "crop_pct": 0.9}
    return json.dumps(said | {"pretrained_cfg": settings | {"num_classes": model.num_classes}} | change).encode()


def folder_of(path: Path, model: torch.nn.Module, **change) -> Path:
    path.mkdir()
    (path / "model.safetensors").write_bytes(save(model.state_dict()))
    (path / "config.json").write_bytes(config_of(model, **change))
    return path


def pickled(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def require_same(ours: torch.nn.Module, theirs: torch.nn.Module, size: int = 96) -> None:
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(ours(image), theirs(image))


def test_timms_weights_come_by_name_with_classes_and_preprocessing_of_timm(hub):
    model = network(num_classes=1000)
    commit = hub.add(f"timm/{NETWORK}.{TAG}", {"model.safetensors": save(model.state_dict())})
    for name in (f"timm:{NETWORK}", f"timm:{NETWORK}.{TAG}", f"timm:{NETWORK}@{commit}"):
        loaded, info = atnet.load(name)
        require_same(loaded, model)
    settings = resolve_model_data_config(model)
    assert (info.model, info.preprocess.size, info.preprocess.mean) == (NETWORK, 224, settings["mean"])
    assert info.classes == tuple(ImageNetInfo().label_names())
    assert info.class_names[0].startswith("tench")
    assert info.facts == {"weights": f"timm:{NETWORK}.{TAG}@{commit}"}
    assert not loaded.training
    assert "state_dict" not in loaded.pretrained_cfg


def test_a_pickle_is_taken_where_there_is_no_safetensors_file(hub):
    model = network(num_classes=1000)
    hub.add(f"timm/{NETWORK}.{TAG}", {"pytorch_model.bin": pickled(model.state_dict())})
    require_same(atnet.load(f"timm:{NETWORK}")[0], model)


def test_a_repository_on_the_hub_says_what_it_is(hub):
    model = network()
    hub.add(
        "alice/net", {"model.safetensors": save(model.state_dict()), "config.json": config_of(model, label_names=NAMES)}
    )
    loaded, info = atnet.load("hf-hub:alice/net")
    require_same(loaded, model)
    assert (info.classes, info.preprocess.size, info.preprocess.std) == (NAMES, 96, (0.2,) * 3)


@pytest.mark.parametrize("offline", [True, False], ids=["HF_HUB_OFFLINE", "no network"])
def test_without_the_hub_the_cache_is_used_and_else_one_line_says_how_to_bring_it(hub, monkeypatch, offline):
    model = network(num_classes=1000)
    hub.add(f"timm/{NETWORK}.{TAG}", {"model.safetensors": save(model.state_dict())})
    hub.add("alice/net", {"model.safetensors": save(model.state_dict()), "config.json": config_of(model)})
    hub.add(
        "alice/net", {"README.md": b"", "model.safetensors": save(model.state_dict()), "config.json": config_of(model)}
    )
    constants, nowhere = huggingface_hub.constants, "http://127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)

    def cut() -> None:
        if offline:
            patch.setattr(constants, "HF_HUB_OFFLINE", True)
        else:
            patch.setattr(constants, "ENDPOINT", nowhere)
            template = nowhere + "/{repo_id}/resolve/{revision}/{filename}"
            patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    for name, repository in ((f"timm:{NETWORK}", f"timm/{NETWORK}.{TAG}"), ("hf-hub:alice/net", "alice/net")):
        remedy = (
            f"hf download {repository} model.safetensors config.json --local-dir FOLDER`, then --weights local-dir:"
        )
        with monkeypatch.context() as patch:
            cut()
            with pytest.raises(HubError, match=remedy) as caught:
                atnet.load(name)
            assert "\n" not in str(caught.value)
        _, online = atnet.load(name)
        with monkeypatch.context() as patch:
            cut()
            loaded, cached = atnet.load(name)
            require_same(loaded, model)
            assert cached == online


def test_what_the_hub_gives_is_held_against_its_hash(hub):
    name = f"timm/{NETWORK}.{TAG}"
    hub.add(name, {"model.safetensors": save(network(num_classes=1000).state_dict())})
    [(blob, _)] = hub.repositories[name].commits[-1][2].values()
    hub.blobs[blob] = hub.blobs[blob][:-4] + b"\0\0\0\1"
    with pytest.raises(
        WeightsError, match=rf"model.safetensors: damaged, for the hub says that its SHA-256 is {blob[:16]}"
    ):
        atnet.load(f"timm:{NETWORK}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet81", "timm has no network of this name: did you mean timm:resnet"),
        ("timm:resnet18.nonsense", "no such weights: timm has timm:resnet18.a1_in1k"),
        ("timm:atnet_xxs", "timm has no pretrained weights of it"),
        (
            "timm:gcvit_xxtiny",
            r"not on the hub, but at https://\S+: fetch that, then --weights FILE --model gcvit_xxtiny",
        ),
        ("timm:atnet_xxxs.imagenette", "comes with AT-Net, and is called xxxs.imagenette"),
        ("resnet18", "no such run, folder or weights file; timm's pretrained network is timm:resnet18"),
    ],
)
def test_names_that_are_none_name_the_remedy(name, message):
    with pytest.raises(WeightsError, match=message):
        atnet.load(name)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_a_bare_file_needs_the_name_of_its_network(name, tmp_path):
    model = network()
    content = save(model.state_dict()) if name.endswith("s") else pickled(model.state_dict())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{name}: .*--model resnet18 for example"):
        atnet.load(name)
    loaded, info = atnet.load(name, model=NETWORK)
    require_same(loaded, model)
    assert info.classes == tuple(f"class {i}" for i in range(5))
    with pytest.raises(
        WeightsError, match="not weights of resnet10t with .* classes: conv1.0.weight is absent in the file"
    ):
        atnet.load(name, model="resnet10t")
    with pytest.raises(WeightsError, match="'resnet1o' is no architecture that timm .* has; did you mean resnet"):
        atnet.load(name, model="resnet1o")


@pytest.mark.parametrize("key", ["state_dict", "model", "state_dict_ema", "model_ema", ""])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_checkpoints_of_training_scripts_are_unpacked(key, prefix, tmp_path):
    model = network()
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    around = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "state_dict": other}
    Path("net.pt").write_bytes(
        pickled(around | {key: state} if key and key != "model" else {"model": state} if key else state)
    )
    require_same(atnet.load("net.pt", model=NETWORK)[0], model)


def test_a_pickle_that_would_run_code_runs_none(hub, tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "trapped"),))

    content = pickled({"state_dict": {"x": torch.zeros(1)}, "args": Trap()})
    Path("trap.pth").write_bytes(content)
    hub.add(f"timm/{NETWORK}.{TAG}", {"pytorch_model.bin": content})
    hub.add("alice/trap", {"pytorch_model.bin": content, "config.json": config_of(network())})
    for where in ("trap.pth", f"timm:{NETWORK}", "hf-hub:alice/trap"):
        with pytest.raises(WeightsError, match="refused, for to read it would run code that it brings") as caught:
            atnet.load(where, model=NETWORK)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("change", [{}, {"num_classes": 1000}, {"label_names": list(NAMES[:3])}])
def test_the_tensors_say_how_many_classes_there_are(change, tmp_path):
    model = network(num_classes=5)
    folder = folder_of(tmp_path / "net", model, **change)
    loaded, info = atnet.load(f"local-dir:{folder}")
    require_same(loaded, model)
    assert len(info.classes) == 5


def test_a_folder_as_transformers_writes_it(tmp_path):
    model = network()
    folder = folder_of(
        tmp_path / "net",
        model,
        model_type="timm_wrapper",
        id2label={str(i): n for i, n in enumerate(NAMES)},
        model_args=None,
    )
    state = {f"timm_model.{name}": tensor for name, tensor in model.state_dict().items()}
    (folder / "model.safetensors").write_bytes(save(state))
    loaded, info = atnet.load(folder)
    require_same(loaded, model)
    assert info.classes == NAMES


def test_position_embeddings_are_resampled_to_another_size(tmp_path):
    name = "vit_tiny_patch16_224"
    model = network(name, img_size=32)
    folder = folder_of(tmp_path / "vit", model, model_args={"img_size": 32})
    loaded, info = atnet.load(folder)
    assert info.preprocess.size == 32
    require_same(loaded, model, 32)
    larger, info = atnet.load(folder, size=64)
    assert info.preprocess.size == 64
    theirs = timm.create_model(
        name, pretrained=True, num_classes=5, img_size=64,
        pretrained_cfg_overlay={"state_dict": model.state_dict(), "num_classes": 5, "hf_hub_id": None},
    ).eval()  # fmt: skip
    require_same(larger, theirs, 64)


@pytest.mark.parametrize(
    ("mode", "resize"), [("center", "crop"), ("border", "letterbox"), ("squash", "squash"), (None, "crop")]
)
def test_images_become_square_as_timm_makes_them_so(mode, resize, tmp_path):
    model = network()
    settings = json.loads(config_of(model))["pretrained_cfg"] | {"crop_mode": mode}
    info = atnet.load(folder_of(tmp_path / "net", model, pretrained_cfg=settings))[1]
    assert info.preprocess.resize == resize
    assert pretrained_cfg(info)["crop_mode"] == (mode or "center")


def test_a_network_that_works_at_one_size_only_says_so(tmp_path):
    folder = folder_of(tmp_path / "mixer", network("mixer_s32_224", img_size=64), model_args={"img_size": 64})
    with pytest.raises(ConfigError, match="mixer_s32_224 with these weights works at 64 px, and not at 128"):
        atnet.load(folder, size=128)


def test_tensors_of_other_names_are_taken_in_their_order(tmp_path, caplog):
    model = network()
    state = [tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")]
    Path("net.pth").write_bytes(pickled({f"layer{i}.x": tensor for i, tensor in enumerate(state)}))
    with caplog.at_level("INFO", logger="atnet"):
        require_same(atnet.load("net.pth", model=NETWORK)[0], model)
    assert f"net.pth: other names than {NETWORK} has; taken in their order" in caplog.text
    require_same(atnet.load(f"{NETWORK}=net.pth")[0], model)
    assert find_weights(f"{NETWORK}=net.pth").name == f"{NETWORK}={Path('net.pth').resolve()}"
    Path("lr=1.pth").write_bytes(Path("net.pth").read_bytes())
    require_same(atnet.load("lr=1.pth", model=NETWORK)[0], model)
    Path("net.pth").write_bytes(pickled({f"layer{i}.x": tensor for i, tensor in enumerate(state[1:])}))
    with pytest.raises(WeightsError, match="conv_stem.weight is absent in the file"):
        atnet.load("net.pth", model=NETWORK)


@pytest.mark.parametrize("name", ["resnet10t", "dla46_c"])  # timm lets tensors of the other be absent
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state, first: state.pop(first), "is absent in the file"),
        (lambda state, first: state.update(more=torch.zeros(2)), "more is .2,. in the file and absent in the model"),
        (lambda state, first: state.update({first: torch.zeros(2)}), r"is \(2,\) in the file and"),
        (lambda state, first: state.update({first: state[first] * float("nan")}), "numbers that are not finite"),
    ],
    ids=["missing", "unexpected", "shape", "nan"],
)
def test_the_first_tensor_that_does_not_fit_is_named(name, change, message, tmp_path):
    state = dict(network(name).state_dict())
    change(state, next(iter(state)))
    Path("net.safetensors").write_bytes(save(state))
    with pytest.raises(WeightsError, match=message):
        atnet.load("net.safetensors", model=name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2]", "not timm's configuration"),
        (b"[" * 100_000, "not timm's configuration"),
        (json.dumps({"architecture": "resnet10t", "x": [[[[[[[[[[]]]]]]]]]]}).encode(), "8 deep"),
        (b'{"architecture": "hf-hub:evil/net"}', "no architecture that timm"),
        (b'{"architecture": "../../etc"}', "no architecture that timm"),
        (b'{"architecture": ["resnet10t"]}', "another type"),
        (b'{"architecture": "resnet10t", "pretrained_cfg": {"mean": "red"}}', "not timm's configuration"),
        (b'{"architecture": "resnet10t", "num_classes": 1e99}', "num_classes"),
        (b'{"architecture": "resnet10t", "label_names": [1, 2]}', "label names that are no text"),
        (b'{"architecture": "resnet10t", "model_args": {"stem_width": 9999}}', "stem_width"),
        (b'{"architecture": "resnet10t", "pretrained_cfg": {"input_size": [3, 999999, 999999]}}', "out of range"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(content, message, tmp_path):
    folder = folder_of(tmp_path / "net", network("resnet10t"))
    (folder / "config.json").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        atnet.load(folder)


def test_a_configuration_sends_timm_nowhere(hub, tmp_path):
    model = network()
    elsewhere = {"hf_hub_id": "evil/net", "url": f"{hub.address}/net.pth", "file": "/etc/passwd", "source": "hf-hub"}
    settings = json.loads(config_of(model))["pretrained_cfg"] | elsewhere | {"custom_load": True}
    folder = folder_of(tmp_path / "net", model, pretrained_cfg=settings)
    require_same(atnet.load(folder)[0], model)
    assert hub.asked == []


def test_a_configuration_too_large_is_not_read(tmp_path):
    folder = folder_of(tmp_path / "net", network())
    with (folder / "config.json").open("ab") as file:
        file.write(b" " * MAX_CONFIG_BYTES)  # JSON as before, but for its size
    with pytest.raises(WeightsError, match=f"config.json: .* more than the {MAX_CONFIG_BYTES:,} allowed"):
        atnet.load(folder)


def test_a_network_without_a_classifier_is_trained_and_embeds_but_does_not_predict(tmp_path):
    model = network(num_classes=0)
    folder = folder_of(tmp_path / "net", model)
    with pytest.raises(WeightsError, match="without a classifier; train one: atnet train --weights"):
        atnet.load(folder)
    require_same(load_any(folder)[0], model)


def test_a_run_begins_with_them_says_which_and_is_resumed_without_them(hub, quick, tmp_path, monkeypatch):
    model = network(num_classes=1000)
    content = save(model.state_dict())
    commit = hub.add(f"timm/{NETWORK}.{TAG}", {"model.safetensors": content})
    options = {name: quick[name] for name in ("epochs", "batch", "data")}
    config = settle(configure(weights=f"timm:{NETWORK}", **options))
    assert (config.model, config.data.crop_pct) == (NETWORK, 1.0)
    assert config.data.mean == model.pretrained_cfg["mean"]
    run = atnet.train(weights=f"timm:{NETWORK}", **options, out=tmp_path / "run")
    assert run.record["config"]["weights"] == f"timm:{NETWORK}.{TAG}@{commit}"
    assert run.record["environment"]["weights_sha256"] == sha256_of(content)
    hub.repositories.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    (tmp_path / "run" / "record.json").unlink()
    assert atnet.train(resume=tmp_path / "run").record["top1"] == run.record["top1"]


def test_a_run_without_weights_says_how_to_have_some():
    assert (
        from_random_weights("resnet18")
        == "resnet18 starts from random weights; from pretrained ones: --weights timm:resnet18"
    )
    assert from_random_weights("atnet_xxxs").endswith("--weights xxxs.general")
    assert from_random_weights("atnet_xxs+kernel=7") == "xxs+kernel=7 starts from random weights"


def test_every_command_takes_the_names(tmp_path, digits, capsys):
    names = sorted(path.name for path in (digits / "val").iterdir())
    model = network(num_classes=10)
    folder = folder_of(tmp_path / "net", model, label_names=names)
    image = str(next((digits / "val").rglob("*.png")))
    main(["eval", "--weights", f"local-dir:{folder}", "--data", str(digits), "--workers", "0"])
    main(["predict", image, "--weights", f"local-dir:{folder}"])
    main(["embed", str(digits / "val"), "--weights", f"local-dir:{folder}", "--workers", "0", "--out", "v.parquet"])
    main(["explain", image, "--weights", f"local-dir:{folder}"])
    Path("bare.pth").write_bytes(pickled(model.state_dict()))
    Path("classes.txt").write_text("\n".join(names))
    bare = ["--weights", "bare.pth", "--model", NETWORK]
    main(
        [
            "export",
            *bare,
            "--classes",
            "classes.txt",
            "--to",
            "safetensors",
            "--out",
            "o.safetensors",
            "--data",
            str(digits),
        ]
    )
    assert read_info("o.safetensors").classes == tuple(names)
    require_same(atnet.load("o.safetensors")[0], model)
    main(["predict", image, *bare])
    assert "class " in capsys.readouterr().out
    assert architecture_of(f"local-dir:{folder}") == architecture_of(f"timm:{NETWORK}") == NETWORK
    Path("classes.txt").write_text("a\nb\n")
    with pytest.raises(SystemExit):
        main(["export", *bare, "--classes", "classes.txt", "--data", str(digits)])
    assert "2 different names on 2 lines, and the network has 10 outputs" in capsys.readouterr().err


def test_what_is_on_this_machine_is_listed(hub, capsys):
    model = network(num_classes=1000)
    hub.add(f"timm/{NETWORK}.{TAG}", {"model.safetensors": save(model.state_dict())})
    small = network()
    hub.add("alice/net", {"model.safetensors": save(small.state_dict()), "config.json": config_of(small)})
    for name in (f"timm:{NETWORK}", "hf-hub:alice/net"):
        atnet.load(name)
    main(["weights", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["xxxs.imagenette"]["classes"] == 10
    assert (rows[f"timm:{NETWORK}.{TAG}"]["classes"], rows["hf-hub:alice/net"]["classes"]) == (1000, 5)


def test_what_a_plain_loop_trained_comes_back(tmp_path):
    model = network()
    info = atnet.save(model, "net.safetensors", class_names=NAMES)
    assert info.preprocess.size == 224
    loaded, same = atnet.load("net.safetensors")
    require_same(loaded, model)
    assert same == info
    settings = resolve_model_data_config(model) | {"input_size": (3, 64, 64), "mean": (0.1,) * 3}
    assert atnet.save(model, "net.safetensors", class_names=NAMES, preprocess=settings).preprocess.mean == (0.1,) * 3
    plain = atnet.create_model("xxxs", num_classes=5)
    atnet.save(plain, "xxxs.safetensors", class_names=NAMES, preprocess=info.preprocess, name="xxxs")
    assert atnet.load("xxxs.safetensors")[1].model == "atnet_xxxs"
    for change, message in (
        ({"class_names": NAMES[:4]}, r"not a mobilenetv3_small_050 of 4 classes: classifier.weight is \(5, 1024\)"),
        ({"class_names": ["a"] * 5}, "the name of each class once"),
        ({"name": "resnet10t"}, "not a resnet10t of 5 classes"),
        ({"name": "nothing"}, "no model is called 'nothing'"),
        ({"preprocess": {"mean": (0.5,) * 3}}, "preprocess: "),
    ):
        with pytest.raises(ConfigError, match=message):
            atnet.save(model, "other.safetensors", **{"class_names": NAMES} | change)
    assert not Path("other.safetensors").exists()
