import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

import atnet
import atnet.timm
from atnet.cli import main
from atnet.data.decode import decode
from atnet.data.preprocess import Preprocess
from atnet.errors import ConfigError, HubError, WeightsError
from atnet.export import publish as publishing
from atnet.export.export import export
from atnet.export.publish import hub_name, publish
from atnet.export.runtime import find_runtime
from atnet.models.load import create_classifier, to_safetensors
from atnet.weights import hub as hugging_face
from atnet.weights.info import WeightsInfo

TEN = "xxxs.imagenette"

# huggingface_hub's upload by plain HTTP gives httpx its files in the way of requests.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAMES = {"n03394916": "French horn", "a|b<c>": "a|b<c>", "owl": "owl"}


def write_weights(path: Path, model: str = "atnet_xxxs", size: int = 32) -> Path:
    torch.manual_seed(0)
    info = WeightsInfo(
        model=model,
        classes=tuple(NAMES),
        class_names=tuple(NAMES.values()),
        preprocess=Preprocess(
            size=size, crop_pct=0.9, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)
        ),
        epoch=3,
        moving_average=True,
        facts={"data": "horns", "val_top1": 87.5, "val_top5": 100.0},
    )
    path.write_bytes(to_safetensors(create_classifier(model, classes=len(NAMES), size=size).state_dict(), info))
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "weights.safetensors")


def metadata_of(card: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.S)[1])


@pytest.mark.parametrize(
    "model", ["atnet_xxxs", "atnet_xxxs+kernel=3+registers=2+global_pool=avg", "deit_tiny_patch16_224"]
)
def test_a_folder_is_the_same_network_in_timm_and_here(model, tmp_path, digits):
    done = publish(write_weights(tmp_path / "weights.safetensors", model), to=tmp_path / "out" / "horn")
    folder = tmp_path / "out" / "horn"
    assert sorted(done.files) == sorted(path.name for path in folder.iterdir())
    assert set(done.files) == {"model.safetensors", "config.json", "sha256.json", "README.md"}
    ours, info = atnet.load(folder)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    with torch.inference_mode():
        for path in sorted((digits / "val").rglob("*.png"))[:3]:
            prepared = info.preprocess(decode(path))
            with Image.open(path) as image:
                assert np.array_equal(transform(image.convert("RGB")).numpy(), prepared)
            assert torch.equal(theirs(torch.from_numpy(prepared)[None]), ours(torch.from_numpy(prepared)[None]))
    assert tuple(theirs.pretrained_cfg["label_names"]) == info.class_names
    assert theirs.pretrained_cfg["label_descriptions"]["French horn"] == "French horn (n03394916)"
    config = json.loads((folder / "config.json").read_text())
    assert isinstance(config["model_args"], dict)
    assert "num_classes" not in config["model_args"]
    assert config["num_features"] == theirs.num_features
    assert "null" not in (folder / "config.json").read_text()


def test_what_is_published_again_is_the_same_to_the_byte(weights, tmp_path):
    for name in ("one", "two"):
        publish(weights, to=tmp_path / name / "horn")
    for path in (tmp_path / "one" / "horn").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / "horn" / path.name).read_bytes()
    hashes = json.loads((tmp_path / "one" / "horn" / "sha256.json").read_text())
    assert set(hashes) == {"model.safetensors", "config.json"}
    for name, expected in hashes.items():
        assert hashlib.sha256((tmp_path / "one" / "horn" / name).read_bytes()).hexdigest() == expected


def test_a_runs_card_tells_of_its_training(quick, digits, tmp_path):
    run = atnet.train(**quick | {"model": "xxxs", "weights": "none"}, out=tmp_path / "run")
    (tmp_path / "run" / "ema.md").write_text("# Title\n\nPhotographed in *June*.\n")
    publish(run.folder, to=tmp_path / "numbers", licence="cc-by-4.0")
    card = (tmp_path / "numbers" / "README.md").read_text()
    info = atnet.load(run.folder)[1]
    said = metadata_of(card)
    assert (said["license"], said["library_name"], said["pipeline_tag"]) == (
        "cc-by-4.0", "timm", "image-classification"
    )  # fmt: skip
    [result] = said["model-index"][0]["results"]
    assert result["dataset"]["name"] == "digits"
    assert result["metrics"][0]["value"] == pytest.approx(info.facts["val_top1"] / 100, abs=1e-6)
    for words in (
        f"top-1 {info.facts['val_top1']:.2f}%",
        "on 50 validation images of digits",
        "200 images of digits",
        "1 epoch, batch 20, muon",
        f"{run.record['parameters']:,} parameters, 10 million multiply-adds",
        "Photographed in *June*.",
        'timm.create_model("local-dir:FOLDER", pretrained=True)',
    ):
        assert words in card
    assert "# Title" not in card
    assert "## Limits" not in card, "its maker's own words are there"
    assert str(tmp_path) not in card


def test_the_card_takes_no_markup_from_names_and_says_what_is_not_known(weights, tmp_path):
    publish(weights, to=tmp_path / "horn")
    card = (tmp_path / "horn" / "README.md").read_text()
    assert r"French horn, a\|b\<c\>, owl" in card
    assert metadata_of(card)["license"] == "unknown"
    assert "top-1 87.50%, top-5 100.00%, on the validation images of horns" in card
    assert "## Limits" in card


def test_the_network_that_comes_with_the_package_is_published_with_its_card(tmp_path, capsys, digits):
    main(["publish", "--weights", TEN, "--to", str(tmp_path / "ten"), "--onnx"])
    assert f"Next: atnet predict IMAGE --weights {tmp_path / 'ten'}" in capsys.readouterr().out
    card = (tmp_path / "ten" / "README.md").read_text()
    assert metadata_of(card)["license"] == "apache-2.0"
    assert "Imagenette's training part alone" in card
    image = next((digits / "val").rglob("*.png"))
    here, there = (
        {name: share for name, _, share in atnet.predict(image, asked, top=10)[0].top}
        for asked in (tmp_path / "ten", tmp_path / "ten" / "model.onnx")
    )
    assert here == pytest.approx(there, abs=1e-2)
    (model, info), (shipped, same) = atnet.load(tmp_path / "ten"), atnet.load(TEN)
    assert info == same
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), shipped.parameters(), strict=True))


@pytest.mark.slow
def test_a_page_goes_with_it_too(weights, digits, tmp_path):
    try:
        find_runtime()
    except ConfigError as error:
        pytest.skip(str(error))
    done = publish(weights, to=tmp_path / "horn", web=True, data=str(digits))
    assert "web/index.html" in done.files
    assert "web/index.html" in json.loads((tmp_path / "horn" / "sha256.json").read_text())


def test_nothing_is_overwritten_and_nothing_half_is_left(weights, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="mine: exists and is not empty; choose another folder"):
        publish(weights, to=tmp_path / "mine")
    monkeypatch.setattr(publishing, "TOLERANCE", -1.0)
    with pytest.raises(WeightsError, match="another network, logits apart by .*: nothing was published"):
        publish(weights, to=tmp_path / "out" / "horn")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"private": True}, "--private is for the hub"),
        ({"licence": "Apache 2.0"}, "licence 'Apache 2.0': say it as the hub does"),
        ({"to": "hf-hub:horn"}, "on the hub a model is called hf-hub:user/name"),
    ],
)
def test_options_that_cannot_be_say_so(options, message, weights):
    with pytest.raises(ConfigError, match=message):
        publish(weights, **{"to": "horn", **options})


def test_what_is_a_folder_and_what_is_on_the_hub(tmp_path):
    (tmp_path / "runs").mkdir()
    assert [hub_name(to) for to in ("horn", "./alice/horn", "/alice/horn", "runs/horn", "a/b/c")] == [None] * 5
    assert hub_name("alice/horn") == hub_name("hf-hub:alice/horn") == "alice/horn"
    assert hub_name("hf-hub:runs/horn") == "runs/horn"


@pytest.mark.slow
def test_a_changed_file_is_noticed(weights, digits, tmp_path):
    publish(weights, to=tmp_path / "horn", onnx=True, data=str(digits))
    for name in ("model.safetensors", "model.onnx"):
        path = tmp_path / "horn" / name
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=f"{name}: damaged or changed, for sha256.json has another SHA-256"):
            atnet.predict(next((digits / "val").rglob("*.png")), path)
    (tmp_path / "horn" / "sha256.json").write_text("[1, 2")
    with pytest.raises(WeightsError, match="sha256.json: damaged"):
        atnet.load(tmp_path / "horn")


@pytest.mark.slow
def test_what_is_pushed_comes_back_by_every_way(hub, weights, digits, tmp_path, caplog):
    """The commands as processes of their own, with the hub's variables."""
    variables = os.environ | {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=variables)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    said = run("-m", "atnet", "publish", "--weights", str(weights), "--to", "alice/horn", "--private")
    assert "to alice/horn on the hub, as alice, private, in one commit:" in said
    assert "Next: atnet predict IMAGE --weights hf-hub:alice/horn" in said
    repository = hub.repositories["alice/horn"]
    assert [message for _, message, _ in repository.commits] == ["initial commit", "Published by atnet"]
    assert repository.private
    commit, _, files = repository.commits[-1]
    assert set(files) == {".gitattributes", "model.safetensors", "config.json", "sha256.json", "README.md"}
    hub.asked.clear()
    image = str(next((digits / "val").rglob("*.png")))
    code = f"""
import json, timm, torch, atnet, atnet.timm
here, info = atnet.load("hf-hub:alice/horn@{commit}")
there = timm.create_model("hf-hub:alice/horn", pretrained=True).eval()
image = torch.randn(1, 3, 32, 32)
print(torch.equal(here(image), there(image)), list(info.class_names) == list(there.pretrained_cfg["label_names"]))
print(json.dumps(atnet.predict({image!r}, "hf-hub:alice/horn")[0].top))
"""
    same, top = run("-c", code).splitlines()[-2:]
    assert same == "True True"
    expected = atnet.predict(image, weights)[0].top
    assert [name for name, _, _ in json.loads(top)] == [name for name, _, _ in expected]
    assert [share for *_, share in json.loads(top)] == pytest.approx([share for *_, share in expected], abs=1e-6)
    fetched = {path.rpartition("/")[2] for method, path in hub.asked if method == "GET" and "/resolve/" in path}
    assert fetched <= {"config.json", "sha256.json", "model.safetensors"}
    variables["HF_HUB_OFFLINE"] = "1"
    assert "French horn" in run("-m", "atnet", "predict", image, "--weights", "hf-hub:alice/horn")


@pytest.mark.slow
def test_a_new_publication_takes_the_place_of_the_old_one(hub, weights, digits, tmp_path):
    publish(weights, to="alice/horn", onnx=True, data=str(digits))
    first = hub.repositories["alice/horn"].commits[-1]
    assert "model.onnx" in first[2]
    done = publish(write_weights(tmp_path / "more.safetensors", "atnet_xxxs+registers=2"), to="alice/horn")
    last = hub.repositories["alice/horn"].commits[-1]
    assert done.where.endswith(f"/alice/horn/commit/{last[0]}")
    assert "model.onnx" not in last[2], "it was of the other network"
    assert atnet.load("hf-hub:alice/horn")[1].model == "atnet_xxxs+registers=2"
    assert atnet.load(f"hf-hub:alice/horn@{first[0]}")[1].model == "atnet_xxxs"


def test_a_training_goes_on_from_the_hub_and_says_from_which_commit(hub, weights, quick, tmp_path):
    publish(weights, to="alice/horn")
    commit = hub.repositories["alice/horn"].commits[-1][0]
    run = atnet.train(**quick | {"model": "xxxs"}, weights="hf-hub:alice/horn", out=tmp_path / "run")
    assert run.record["config"]["weights"] == f"hf-hub:alice/horn@{commit}"
    publish(write_weights(tmp_path / "more.safetensors", "atnet_xxxs+registers=2"), to="alice/horn")
    assert atnet.load(run.record["config"]["weights"])[1].model == "atnet_xxxs"


def test_an_export_of_what_is_on_the_hub_lies_here_and_not_in_the_cache(hub, weights, digits, tmp_path):
    publish(weights, to="alice/horn")
    atnet.load("hf-hub:alice/horn")
    before = sorted((tmp_path / "cache").rglob("*.safetensors"))
    commit = hub.repositories["alice/horn"].commits[-1][0]
    done = export(f"hf-hub:alice/horn@{commit}", to="safetensors", data=str(digits))
    assert done.path == Path("horn.safetensors")
    assert atnet.load(done.path)[1].class_names == tuple(NAMES.values())
    assert sorted((tmp_path / "cache").rglob("*.safetensors")) == before


def test_what_is_not_ours_on_the_hub_stays(hub, weights):
    api = huggingface_hub.HfApi()
    api.create_repo("alice/other")
    api.upload_file(path_or_fileobj=b"print()", path_in_repo="train.py", repo_id="alice/other")
    with pytest.raises(HubError, match=r"alice/other: there is something else in it \(train.py\)"):
        publish(weights, to="alice/other")
    publish(weights, to="alice/horn")
    with pytest.raises(HubError, match="alice/horn: is there already, and public"):
        publish(weights, to="alice/horn", private=True)
    assert len(hub.repositories["alice/other"].commits) == len(hub.repositories["alice/horn"].commits) == 2


def test_the_hubs_refusals_say_what_to_do(hub, weights, monkeypatch):
    with pytest.raises(HubError, match=r"bob/horn: the hub refuses \(.*403.*\); the token may not write there"):
        publish(weights, to="bob/horn")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(HubError, match="the token may not write there"):
        publish(weights, to="alice/horn")
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    with pytest.raises(HubError, match="the token is not valid: `hf auth login`, or mend HF_TOKEN"):
        publish(weights, to="alice/horn")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "absent")
    with pytest.raises(HubError, match="no token for the hub: `hf auth login` once, or set HF_TOKEN.*say ./alice/horn"):
        publish(weights, to="alice/horn")
    assert hub.repositories == {}


def test_without_a_network_it_says_so(hub, weights, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="the hub can't be reached, or broke off"):
        publish(weights, to="alice/horn")


def test_what_the_hub_does_not_have_or_is_too_large_is_named(hub, weights, monkeypatch):
    publish(weights, to="alice/horn")
    for address, message in (
        ("hf-hub:alice/hron", "alice/hron: no such model on the hub, or a private one that your token may not see"),
        ("hf-hub:alice/horn@v1", "alice/horn: the hub knows it, but not this revision of it"),
        ("hf-hub:horn..", "horn..: no name of a model on the hub"),
    ):
        with pytest.raises(HubError, match=message):
            atnet.load(address)
    huggingface_hub.HfApi().create_repo("alice/empty")
    with pytest.raises(HubError, match=r"alice/empty: no model.safetensors or pytorch_model.bin in it"):
        atnet.load("hf-hub:alice/empty")
    monkeypatch.setattr(hugging_face, "MAX_WEIGHTS_BYTES", 1000)
    with pytest.raises(HubError, match=r"hf-hub:alice/horn: model.safetensors is larger than 1,000 bytes"):
        atnet.load("hf-hub:alice/horn")
    assert not [path for method, path in hub.asked if method == "GET" and "/lfs/" in path], "it was not fetched"


def test_weights_that_the_hub_changed_are_noticed(hub, weights):
    publish(weights, to="alice/horn")
    [blob] = [name for name, large in hub.repositories["alice/horn"].commits[-1][2].values() if large]
    content = bytearray(hub.blobs[blob])
    content[-100] ^= 1
    hub.blobs[blob] = bytes(content)
    with pytest.raises(WeightsError, match="model.safetensors: damaged or changed"):
        atnet.load("hf-hub:alice/horn")
