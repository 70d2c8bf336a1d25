import json
import shutil

import numpy as np
import pytest
import torch

import atnet
from atnet.cli import main
from atnet.data.loader import eval_loader
from atnet.data.sources import open_any
from atnet.errors import ConfigError, DataError
from atnet.models.load import create_classifier, load
from atnet.training import probe as probing
from atnet.training.probe import Features, features_of, fit, set_head

pytestmark = pytest.mark.usefixtures("cache")


def network(name="xxxs"):
    torch.manual_seed(0)
    return create_classifier(name, classes=5, size=32).eval()


@pytest.mark.parametrize("name", ["xxxs", "xxxs_star", "mobilenetv3_small_050", "regnetx_002"])
def test_the_probe_as_head_gives_the_probes_answers(name, five_digits, finished_run):
    _, info = load(finished_run)
    model, samples = network(name), open_any(str(five_digits))["val"]
    cpu = torch.device("cpu")
    features = features_of(model, samples, info, cpu, batch=16, workers=0)
    probe = fit(features, 5)
    set_head(model, probe)
    images = torch.cat([batch[0] for batch in eval_loader(samples, info.preprocess, 16, 0)])
    with torch.inference_mode():
        said = model(images).softmax(-1)
    alone = torch.from_numpy(probe.logits(features.vectors)).softmax(-1).mean(1)
    torch.testing.assert_close(said, alone, atol=1e-4, rtol=1e-3)
    assert features.vectors.shape[:2] == (len(samples), 2)
    assert features.labels.tolist() == samples.labels.tolist()


def test_a_fit_is_the_one_of_separable_features_and_of_two_classes():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(2), 20)
    vectors = rng.normal(size=(40, 2, 1, 6)).astype(np.float32)
    vectors[labels == 1, :, :, 2] += 8
    probe = fit(Features(vectors=vectors, labels=labels, bad=()), 2)
    assert (probe.logits(vectors).mean(1).argmax(1) == labels).all()
    assert probe.top1 == 100
    assert np.abs(probe.weight[1]).argmax() == 2


def test_a_class_without_images_is_never_the_answer_and_one_image_a_class_is_enough():
    vectors = np.eye(3, dtype=np.float32)[:, None, None].repeat(2, 1)
    probe = fit(Features(vectors=vectors, labels=np.array([0, 2, 3]), bad=()), 5)
    assert probe.logits(vectors)[:, 0].argmax(1).tolist() == [0, 2, 3]
    assert np.isnan(probe.top1)
    with pytest.raises(DataError):
        fit(Features(vectors=vectors, labels=np.array([1, 1, 1]), bad=()), 5)


def test_only_new_images_are_computed(five_digits, finished_run, monkeypatch, cache):
    _, info = load(finished_run)
    model, cpu = network(), torch.device("cpu")
    computed = []
    real = probing._compute
    monkeypatch.setattr(probing, "_compute", lambda m, p, *more: computed.append(len(p)) or real(m, p, *more))

    def again():
        return features_of(model, open_any(str(five_digits))["val"], info, cpu, batch=16, workers=0)

    first = again()
    assert np.array_equal(again().vectors, first.vectors)
    assert computed == [len(first.labels)]
    image = next((five_digits / "val").rglob("*.png"))
    other = next((five_digits / "train").rglob("*.png"))
    shutil.copy(other, image)
    (five_digits / "val" / "five" / "broken.png").write_bytes(b"no image")
    changed = again()
    assert computed == [len(first.labels), 2]
    assert [hole.image for hole in changed.bad] == ["five/broken.png"]
    assert (changed.vectors != first.vectors).any((1, 2, 3)).sum() == 1
    (kept,) = (cache / "features").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1000])
    np.testing.assert_allclose(again().vectors, changed.vectors, atol=1e-4)  # in other batches: not to the bit
    with torch.no_grad():
        next(model.stem.parameters()).mul_(2)
    again()
    assert computed[-1] == len(first.labels) + 1


def test_a_network_without_one_linear_classifier_is_refused(five_digits, finished_run):
    _, info = load(finished_run)
    samples, cpu = open_any(str(five_digits))["val"], torch.device("cpu")
    convolution = torch.nn.Conv2d(3, 5, 1)
    with pytest.raises(ConfigError, match="single linear classifier"):
        features_of(convolution, samples, info, cpu, batch=16, workers=0)


def test_a_probe_is_a_run_like_any_other(finished_run, five_digits, capsys, tmp_path):
    main(["probe", "--data", str(five_digits), "--weights", str(finished_run), "--out", "probed", "--workers", "0"])
    assert "95%" in capsys.readouterr().out
    record = json.loads((tmp_path / "probed" / "record.json").read_text())
    assert record["epochs"] == 0
    assert record["probe"]["images"] == record["train_images"]
    assert 40 < record["top1"]["last"] <= 100, "far above the 20% of chance"
    assert atnet.evaluate("probed").scores.top1 == pytest.approx(record["top1"]["last"])
    image = next((five_digits / "val" / "seven").iterdir())
    assert atnet.predict(image, "probed")[0].top[0][0] in ("five", "six", "seven", "eight", "nine")
    main(["report", "probed"])
    assert (tmp_path / "probed" / "report.html").is_file()


def test_a_probe_lists_what_it_could_not_read_and_stops_if_that_is_too_much(finished_run, five_digits, tmp_path):
    (five_digits / "train" / "five" / "broken.png").write_bytes(b"no image")
    options = {"weights": finished_run, "batch": 20}
    run = atnet.probe({"source": str(five_digits), "workers": 0, "max_bad": 0.02}, **options, out="probed")
    assert run.record["bad_images"] == {"train": 1, "val": 0}
    assert run.record["probe"]["images"] == run.record["train_images"] - 1
    assert "five/broken.png" in (run.folder / "bad_files.csv").read_text()
    (five_digits / "train" / "six" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="2 of 102 training images could not be read"):
        atnet.probe({"source": str(five_digits), "workers": 0}, **options, out="stopped")


def test_several_networks_are_compared(finished_run, five_digits, capsys, tmp_path):
    names = ["xxxs.imagenette", str(finished_run)]
    words = [word for name in names for word in ("--weights", name)]
    main(["probe", "--data", str(five_digits), *words, "--size", "32", "--out", "both", "--workers", "0"])
    said = capsys.readouterr().out
    records = [json.loads(path.read_text()) for path in (tmp_path / "both").glob("*/record.json")]
    assert len(records) == 2
    best = max(records, key=lambda record: record["probe"]["cross_validated_top1"])
    assert f"--weights {names[0] if 'imagenette' in best['config']['weights'] else names[1]}" in said


def test_training_from_other_weights_than_ours_begins_with_the_probe(finished_run, five_digits, monkeypatch):
    monkeypatch.setattr("atnet.training.state.draws_head", lambda model: False)
    options = {"data": {"source": str(five_digits), "workers": 0}, "weights": str(finished_run), "batch": 20}
    probed = atnet.train(**options, epochs=0, out="probed")
    tuned = atnet.train(**options, epochs=1, optim={"lr": 1e-9}, ema=0.0, choose=False, out="tuned")
    seconds = {"seconds": tuned.record["probe"]["seconds"]}
    assert tuned.record["probe"] == pytest.approx(probed.record["probe"] | seconds)
    head = {run.folder.name: load(run.folder)[0].head.weight for run in (probed, tuned)}
    torch.testing.assert_close(head["tuned"], head["probed"], atol=1e-5, rtol=0)


def test_a_probe_needs_weights():
    with pytest.raises(ConfigError, match="epochs=0 is a linear probe"):
        atnet.train(weights="none", data="digits", epochs=0)
