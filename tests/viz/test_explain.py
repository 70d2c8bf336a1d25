"""What the network looks at: values held against sums done by hand, and against what is in the image."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from sklearn.datasets import load_sample_image

import atnet
from atnet.cli import main
from atnet.errors import ConfigError, DataError, WeightsError
from atnet.export.export import export
from atnet.viz.explain import maps_of

TEN = "xxxs.imagenette"

TINY = "xxxs+depths=0,1,1+dims=16,16,8+heads=2+registers=1"


@pytest.fixture
def china(tmp_path: Path) -> Path:
    """A photo of a temple, which the network that comes with the package calls a church."""
    path = tmp_path / "china.jpg"
    Image.fromarray(load_sample_image("china.jpg")).save(path, quality=95)
    return path


def tiny(changes: str = "") -> tuple[torch.nn.Module, torch.Tensor]:
    """A network of few channels with weights large enough for attention that is not even, and an input."""
    torch.manual_seed(0)
    model = atnet.create_model(TINY + changes, num_classes=3).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".q." in name or ".kv." in name or ".qkv." in name:
                weight.mul_(40)
    return model, torch.randn(1, 3, 48, 64)


def by_hand(layer: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    """A layer's attention (heads, asking, tokens), number by number."""
    state = {name: value.double().numpy() for name, value in layer.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    mean, deviation = tokens.mean(1, keepdims=True), tokens.std(1, keepdims=True)
    x = (tokens - mean) / np.sqrt(deviation**2 + 1e-6) * state["norm1.weight"] + state["norm1.bias"]
    if layer.prefix:
        query, key = linear("attention.q", x[: layer.prefix]), linear("attention.kv", x)[:, :8]
    else:
        query, key = linear("attention.qkv", x)[:, :8], linear("attention.qkv", x)[:, 8:16]
    found = np.zeros((2, len(query), len(key)))
    for head in range(2):
        mine = slice(4 * head, 4 * head + 4)
        for i in range(len(query)):
            powers = np.exp([query[i, mine] @ key[k, mine] / 2 for k in range(len(key))])
            found[head, i] = powers / powers.sum()
    return found


def tokens_of(model: torch.nn.Module, image: torch.Tensor) -> list[np.ndarray]:
    """What enters each TransMix layer."""
    found = []
    hooks = [layer.register_forward_pre_hook(lambda _, given: found.append(given[0][0].double().numpy()))
             for layer in model.encoder]  # fmt: skip
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("changes", ["", "+attention_depths=1,2", "+attention_depths=2,0"])
def test_attention_and_rollout_are_those_done_by_hand(changes):
    model, image = tiny(changes)
    maps = maps_of(model, image)
    assert maps.attention.shape == (3 if "1,2" in changes else 2, 2, 2, 3, 4)
    np.testing.assert_allclose(maps.attention.sum((3, 4)) + maps.among.sum(3), 1, atol=1e-6)
    flow = np.eye(14)
    for number, (layer, tokens) in enumerate(zip(model.encoder, tokens_of(model, image), strict=True)):
        shares = by_hand(layer, tokens)
        np.testing.assert_allclose(maps.among[number], shares[:, :2, :2].transpose(1, 0, 2), atol=1e-5)
        there = shares[:, :2, 2:].reshape(2, 2, 3, 4).transpose(1, 0, 2, 3)
        np.testing.assert_allclose(maps.attention[number], there, atol=1e-5)
        assert shares.max() > 2 / 14, "attention that is even would prove nothing"
        step = np.eye(14)
        asking = shares.shape[1]
        step[:asking] = step[:asking] / 2 + shares.mean(0) / 2
        flow = step @ flow
    np.testing.assert_allclose(maps.rollout, flow[:2, 2:].reshape(2, 3, 4), atol=1e-5)


@pytest.mark.parametrize("name", ["xxxs", "xxs_star", "s", "seed_xxxs", "xxxs+registers=0"])
def test_the_answer_is_the_networks_own(name):
    torch.manual_seed(0)
    model = atnet.create_model(name, num_classes=4).eval()
    image = torch.randn(1, 3, 50, 70)
    with torch.inference_mode():
        expected = model(image)[0].numpy()
    np.testing.assert_allclose(maps_of(model, image).logits, expected, atol=1e-5)
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_a_peers_map_and_the_heads_bias_make_its_logit(name):
    """Where the head is a mean and one matrix, Grad-CAM shares the logit out among the places."""
    torch.manual_seed(0)
    model = atnet.create_model(name, num_classes=4).eval()
    side = 224 if "224" in name else 96
    maps = maps_of(model, torch.randn(1, 3, side, side), 2)
    bias = model.get_classifier().bias[2].item()
    assert maps.gradient.sum() + bias == pytest.approx(maps.logits[2], abs=1e-4)
    assert maps.gradient.shape == (side // 32, side // 32)
    assert (maps.attention.shape[:3], maps.rollout.shape[0], maps.stride) == ((0, 0, 0), 0, 32)


def test_a_peer_whose_last_features_are_no_grid_is_refused():
    model = atnet.create_model("deit_tiny_patch16_224", num_classes=4).eval()
    with pytest.raises(ConfigError, match="VisionTransformer: its last features are no grid of places"):
        maps_of(model, torch.zeros(1, 3, 224, 224))


def test_the_answers_are_those_of_predict_and_the_map_lies_on_what_is_shown(china, tmp_path):
    """The temple moved to the other side takes the map with it."""
    [found] = atnet.explain(china, TEN)
    [answer] = atnet.predict(china, TEN, device="cpu")
    assert [name for _, name, _ in found.top] == [name for _, name, _ in answer.top]
    assert [share for *_, share in found.top] == pytest.approx([share for *_, share in answer.top], abs=1e-2)
    assert (found.pixels.shape, found.maps.gradient.shape, found.target) == ((160, 160, 3), (10, 10), "church")
    temple = Image.open(china).crop((30, 40, 350, 400)).resize((80, 90))
    middles = []
    for left in (0, 80):
        sheet = Image.new("RGB", (160, 160), (90, 120, 160))  # a sky; on grey attention stays on the left (LOG.md)
        sheet.paste(temple, (left, 35))
        sheet.save(tmp_path / f"{left}.png")
        [found] = atnet.explain(tmp_path / f"{left}.png", TEN, target="n03028079")
        for seen in (found.maps.gradient.clip(0), found.maps.rollout[0]):
            middles.append(float((seen.sum(0) * (np.arange(10) + 0.5)).sum() / seen.sum()))
    assert max(middles[:2]) < 5 < min(middles[2:]), middles


def test_other_sizes_and_shapes_have_other_grids(china):
    [larger] = atnet.explain(china, TEN, size=224)
    assert (larger.maps.gradient.shape, larger.maps.attention.shape) == ((14, 14), (2, 5, 6, 14, 14))
    [whole] = atnet.explain(china, TEN, whole=True)
    assert whole.pixels.shape == (160, 239, 3)
    assert (whole.maps.gradient.shape, whole.maps.stride) == ((10, 15), 16)
    assert whole.top[0][1] == "church"


def test_maps_are_of_the_weights_not_of_the_image(china):
    """Adebayo et al. 2018: with other weights it is another map."""
    model, info = atnet.load(TEN)
    image = torch.from_numpy(info.preprocess(Image.open(china)))[None]
    trained, again = maps_of(model, image), maps_of(model, image)
    assert (trained.gradient == again.gradient).all()
    for seed in range(3):
        torch.manual_seed(seed)
        drawn = maps_of(atnet.create_model("xxxs", num_classes=10).eval(), image, int(trained.logits.argmax()))
        for one, other in ((trained.gradient, drawn.gradient), (trained.attention[-1, 0].mean(0),
                                                               drawn.attention[-1, 0].mean(0))):  # fmt: skip
            assert abs(spearmanr(one.ravel(), other.ravel()).statistic) < 0.6


def test_another_class_has_another_map(china):
    church, truck = (atnet.explain(china, TEN, target=name)[0] for name in ("church", "n03417042"))
    assert (church.target, truck.target) == ("church", "garbage truck")
    assert church.maps.gradient.max() > 0
    assert spearmanr(church.maps.gradient.ravel(), truck.maps.gradient.ravel()).statistic < 0.5


def test_a_run_of_a_peer_is_drawn_too(quick, digits, tmp_path):
    run = atnet.train(**quick | {"model": "mobilenetv3_small_050"}, out=tmp_path / "run").folder
    image = next((digits / "val" / "six").iterdir())
    [found] = atnet.explain(image, run, out=tmp_path / "out", size=64)
    assert found.maps.gradient.shape == (2, 2)
    with Image.open(found.drawn) as image:
        assert min(image.size) > 200


def test_the_command_draws_each_image_and_names_the_bad_one(china, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    shutil.copy(china, tmp_path / "other" / "china.png")
    (tmp_path / "bad.jpg").write_text("text")
    with pytest.raises(SystemExit) as ended:
        main(["explain", "china.jpg", "bad.jpg", "other", "--weights", TEN])
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert "bad.jpg: text, not a whole JPEG" in said.err
    assert "china.jpg: church, " in said.out
    assert sorted(path.name for path in Path("explained").iterdir()) == ["china-2.png", "china.png"]
    with Image.open("explained/china.png") as image:
        tokens = np.asarray(image.convert("RGB")).astype(int)[image.height // 2 :]
    assert (tokens[..., 0] - tokens[..., 2] > 60).sum() > 1000, "the maps are in colours, on grey images"
    with pytest.raises(SystemExit):
        main(["explain", "china.jpg", "--weights", TEN])
    assert "china.png: exists; choose another --out" in capsys.readouterr().err


def test_what_cannot_be_explained_says_so(quick, china, tmp_path):
    run = atnet.train(**quick, out=tmp_path / "run").folder
    with pytest.raises(WeightsError, match=r"model.onnx: an exported network; give the run"):
        atnet.explain(china, export(run).path)
    with pytest.raises(ConfigError, match=r"'churc' is no class of these weights; did you mean 'church'\?"):
        atnet.explain(china, TEN, target="churc")
    with pytest.raises(ConfigError, match="size=7 is out of range"):
        atnet.explain(china, TEN, size=7)
    with pytest.raises(DataError, match=r"nowhere.jpg: no such image"):
        atnet.explain("nowhere.jpg", TEN)
    fixed = atnet.train(**quick | {"model": "deit_tiny_patch16_224"}, out=tmp_path / "fixed").folder
    with pytest.raises(ConfigError, match="works at 32 px only: leave --whole out"):
        atnet.explain(china, fixed, whole=True)
    with pytest.raises(ConfigError, match="no grid of places"):
        atnet.explain(china, fixed)
