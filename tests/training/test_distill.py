import contextlib
import dataclasses
import itertools
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import atnet
from atnet.config import DataConfig, make_config
from atnet.data.loader import batches_of, eval_loader
from atnet.data.order import Draw
from atnet.data.preprocess import make_preprocess
from atnet.data.sources import open_labelled, open_parts
from atnet.errors import ConfigError, WeightsError
from atnet.eval.evaluate import score
from atnet.models.load import create_classifier, load
from atnet.training.answers import Answers
from atnet.training.distill import Teacher, Teachers, distillation_loss, feature_loss
from atnet.training.plan import settle
from atnet.training.state import _loss
from atnet.training.teach import teach
from atnet.viz.report import write_report

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(_digits, tmp_path_factory) -> Path:
    """A run on the digits that knows them a little."""
    data = {"source": str(_digits), "size": 32, "crop_pct": 1.0, "workers": 0}
    options = {"weights": "none", "epochs": 4, "batch": 20, "data": data, "augment": {"flip": 0.0, "crop_scale": 0.6}}
    with contextlib.chdir(tmp_path_factory.mktemp("teacher")):
        return atnet.train(**options, out="run").folder.absolute()


def answered(teacher, images):
    return teacher.answer(teacher.see(images))


@pytest.fixture(scope="module")
def classes(_digits) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in (_digits / "train").iterdir()))


def test_a_teacher_says_what_its_network_says_of_images_in_its_own_colours(teacher, classes):
    model, info = load(teacher)
    data = DataConfig(mean=(0.2, 0.3, 0.4), std=(0.5, 0.4, 0.3))
    colours = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def normalised(mean, std):
        return (colours - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)

    said = answered(Teacher(str(teacher), classes, data, CPU), normalised(data.mean, data.std))
    with torch.no_grad():
        expected = model(normalised(info.preprocess.mean, info.preprocess.std))
    torch.testing.assert_close(said, expected, atol=1e-4, rtol=1e-4)
    assert not said.requires_grad


def test_several_teachers_answer_with_their_mean_probability(teacher, classes, tmp_path):
    best = teacher / "best.safetensors"
    both = Teachers((str(teacher), str(best)), classes, DataConfig(), CPU)
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    each = [Teacher(str(path), classes, DataConfig(), CPU) for path in (teacher, best)]
    one, other = (answered(one, images).softmax(1) for one in each)
    assert (one - other).abs().max() > 1e-3
    torch.testing.assert_close(answered(both, images).softmax(1), (one + other) / 2, atol=1e-5, rtol=1e-4)


def test_a_network_of_several_heads_learns_from_several_teachers(quick_star, teacher, tmp_path):
    teachers = (str(teacher), str(teacher / "best.safetensors"))
    options = quick_star | {"teacher": teachers, "heads": {"together": 0.5}}
    run = atnet.train(**options, out=tmp_path / "student")
    assert run.record["config"]["teacher"] == ("run/ema.safetensors", "run/best.safetensors")
    assert len(run.record["heads"]["ema"]["top1"]) == 5


def test_heads_that_learn_together_may_each_differ_from_their_teacher():
    """Their mean probability is the teachers', though no head's own is."""
    mean = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    apart = torch.tensor([[0.2, -0.1, -0.1], [0.05, 0.05, -0.1]])
    said = torch.stack([mean + apart, mean - apart], 1).log()

    def loss(together):
        config = make_config(heads={"together": together}, distill={"share": 1.0, "temperature": 1.0})
        teachers = SimpleNamespace(answer=lambda rows: rows.log())
        state = SimpleNamespace(config=config, class_weight=None, teachers=teachers, answers=None, ask=lambda _: mean)
        return _loss(state, torch.zeros(2), said, torch.tensor([0, 2]))

    assert loss(together=1.0) == pytest.approx(0, abs=1e-6)
    assert loss(together=0.0) > 0.05


def test_timms_own_folder_teaches_too(tmp_path, classes, caplog):
    """An architecture with a fixed input: images of another size are resized for it."""
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224", num_classes=10).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    said = {"architecture": "deit_tiny_patch16_224", "num_classes": 10}
    settings = {"input_size": [3, 224, 224], "fixed_input_size": True, "mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps(said | {"pretrained_cfg": settings}))
    with caplog.at_level(logging.WARNING, logger="atnet"):
        found = Teacher(f"local-dir:{tmp_path}", classes, DataConfig(mean=(0.5,) * 3, std=(0.5,) * 3), CPU)
    assert "does not say which 10 classes it knows: they are taken for the run's" in caplog.text
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(answered(found, images), model(images), atol=1e-5, rtol=1e-5)
    assert answered(found, images[..., :64, :64]).shape == (2, 10)


def test_the_loss_is_least_where_both_say_the_same():
    taught = torch.tensor([[3.0, 1.0, -2.0], [0.0, 0.5, 4.0]])
    logits = torch.zeros(2, 3, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=0.5)
    for _ in range(2000):
        optimizer.zero_grad()
        distillation_loss(logits, taught, 2.0).backward()
        optimizer.step()
    torch.testing.assert_close(logits.softmax(1), taught.softmax(1), atol=1e-3, rtol=0)
    assert distillation_loss(taught, taught, 2.0) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_a_student_comes_to_agree_with_its_teacher(quick, digits, teacher, tmp_path):
    """Labels weigh nothing here: what is learned is the teacher's, mistakes too."""
    options = quick | {"epochs": 6, "optim": {"lr": 2e-3}}
    student = atnet.train(**options, teacher=str(teacher), distill={"share": 1.0}, out=tmp_path / "student")
    loner = atnet.train(**options, label_smoothing=0.0, out=tmp_path / "loner")
    assert student.record["config"]["teacher"] == ("run/ema.safetensors",)
    model, info = load(teacher)
    loader = eval_loader(open_labelled(str(digits / "val")), info.preprocess, 100, 0)
    pixels = torch.cat([images for images, _, _ in batches_of(loader)])

    def apart(run):
        with torch.no_grad():
            shares = [one(pixels).softmax(1) for one in (load(run.folder / "last.safetensors")[0], model)]
        return (shares[0] - shares[1]).abs().sum(1).mean().item()

    assert apart(student) < 0.8 * apart(loner)


def test_stopped_or_not_the_teachers_run_is_the_same(quick, teacher, tmp_path, train_until):
    options = quick | {"epochs": 2, "teacher": str(teacher), "augment": {"mixup": 0.3}}
    whole = atnet.train(**options, out=tmp_path / "whole").record
    train_until(2, **options, out=tmp_path / "broken")
    assert atnet.train(resume=tmp_path / "broken").record["loss"] == whole["loss"]


def test_a_teacher_that_changed_or_is_gone_is_not_taken_for_the_one_before(quick, teacher, tmp_path, train_until):
    taken = Path(shutil.copytree(teacher, tmp_path / "teacher"))
    train_until(1, **quick, teacher=str(taken), out=tmp_path / "run")
    shutil.copy(taken / "last.safetensors", taken / "ema.safetensors")
    with pytest.raises(WeightsError, match=r"--teacher .*ema.safetensors: damaged or changed"):
        atnet.train(resume=tmp_path / "run")
    (taken / "sha256.json").unlink()
    with pytest.raises(ConfigError, match=r"--teacher .*ema.safetensors: not what the run began with"):
        atnet.train(resume=tmp_path / "run")
    shutil.rmtree(taken)
    with pytest.raises(WeightsError, match=r"--teacher .*ema.safetensors: no such run"):
        atnet.train(resume=tmp_path / "run")


def test_teachers_are_found_again_from_any_folder(quick, teacher, monkeypatch):
    monkeypatch.chdir(teacher.parent)
    config = settle(make_config(**quick, teacher=("run", "local-dir:run")))
    assert config.teacher == (str(teacher / "ema.safetensors"), f"local-dir:{teacher}")


@pytest.fixture
def stranger(tmp_path_factory) -> str:
    """Weights that know other classes."""
    folder = tmp_path_factory.mktemp("stranger")
    torch.manual_seed(0)
    network = create_classifier("mobilenetv3_small_050", classes=4, size=32)
    preprocess = make_preprocess(DataConfig(size=32))
    names = ["cat", "dog", "fox", "owl"]
    atnet.save(
        network, folder / "stranger.safetensors", class_names=names, preprocess=preprocess, name="mobilenetv3_small_050"
    )
    return str(folder / "stranger.safetensors")


def test_a_teacher_of_other_classes_is_probed_first(digits, classes, stranger, cache, caplog):
    samples, _ = open_parts(str(digits), 0.2)
    teacher = Teacher(stranger, classes, DataConfig(), CPU)
    assert not teacher.knows
    before = teacher.digest
    with caplog.at_level(logging.INFO, "atnet"):
        teacher.learn(samples, batch=20, workers=0)
    assert teacher.digest != before
    assert "knows 4 classes, not eight: a linear probe of 200 images" in caplog.text
    scores = score(
        teacher.network, eval_loader(samples, teacher.info.preprocess, 50, 0), classes=10, device=CPU, total=200
    )
    assert scores.top1 > 60  # random features tell digits apart
    assert teacher.cross_validated < scores.top1


@pytest.mark.slow
def test_a_run_learns_from_a_teacher_that_was_probed_and_resumes_to_the_bit(
    quick, stranger, cache, tmp_path, train_until, monkeypatch
):
    options = quick | {"epochs": 2, "teacher": stranger, "distill": {"share": 0.9}}
    whole = atnet.train(**options, out=tmp_path / "whole")
    [of_teacher] = whole.record["teachers"]
    assert of_teacher["name"].endswith("stranger.safetensors")
    assert of_teacher["top1"] > 40
    assert 40 < of_teacher["cross_validated"] < 100
    train_until(2, **options, out=tmp_path / "broken")
    shutil.rmtree(cache)  # the run keeps the teacher's classifier by itself
    monkeypatch.setattr("atnet.training.distill.fit", lambda *given, **named: pytest.fail("fitted again"))
    resumed = atnet.train(resume=tmp_path / "broken")
    first, second = (load_file(run.folder / "last.safetensors") for run in (whole, resumed))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert resumed.record["teachers"] == whole.record["teachers"]
    page = write_report(resumed.folder).read_text()
    assert f"a linear probe of the training images: {of_teacher['top1']:.1f}% of the validation images" in page


def test_of_a_teacher_of_more_classes_or_in_another_order_the_runs_are_taught(teacher, classes):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = answered(Teacher(str(teacher), classes, DataConfig(), CPU), images)
    for names in (classes[7:2:-2], classes[::-1]):
        said = answered(Teacher(str(teacher), names, DataConfig(), CPU), images)
        assert torch.equal(said, whole[:, [classes.index(name) for name in names]])


def test_a_teacher_sees_images_at_a_size_of_its_own(teacher, classes):
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    larger = torch.nn.functional.interpolate(images, 32, mode="bilinear", antialias=True)
    plain, sized = (Teacher(str(teacher), classes, DataConfig(), CPU, size) for size in (0, 32))
    assert torch.equal(answered(sized, images), answered(plain, larger))
    assert not torch.equal(answered(sized, images), answered(plain, images))


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """Of each time that the teachers are asked, about how many images."""
    counts: list[int] = []
    see = Teachers.see

    def counting(self, images):
        counts.append(len(images))
        return see(self, images)

    monkeypatch.setattr(Teachers, "see", counting)
    return counts


@pytest.mark.slow
def test_teachers_are_asked_about_each_view_once(quick, teacher, tmp_path, asked, cache, train_until):
    options = quick | {"epochs": 3, "teacher": str(teacher), "distill": {"views": 2}, "batch": 20}
    run = atnet.train(**options, out=tmp_path / "one")
    assert sum(asked) == 2 * run.record["train_images"]
    asked.clear()
    again = atnet.train(**options, out=tmp_path / "again").record
    assert (sum(asked), again["loss"]) == (0, run.record["loss"])
    train_until(2, **options, seed=1, out=tmp_path / "broken")
    broken = atnet.train(resume=tmp_path / "broken").record
    assert broken["loss"] == atnet.train(**options, seed=1, out=tmp_path / "whole").record["loss"]


def test_kept_answers_are_those_of_the_teacher_but_for_16_bits(quick, teacher, tmp_path, cache):
    plain = quick | {"epochs": 1, "teacher": str(teacher)}
    asked = atnet.train(**plain, out=tmp_path / "asked").record["loss"]
    kept = atnet.train(**plain, distill={"views": 1}, out=tmp_path / "kept").record["loss"]
    assert kept == {name: pytest.approx(loss, abs=0.02) for name, loss in asked.items()}


def test_answers_go_on_without_a_disk(tmp_path, caplog):
    answers = Answers(tmp_path / "a.f16", None, views=2, images=3, width=4)
    images, said = torch.zeros(2, 3, 8, 8), torch.tensor([[1.0, 3.0, 2.0, -1e6], [0.0, 0.5, 1.0, 1.5]])
    draws = [Draw(3, 1), Draw(2, 0)]
    first = answers.of(draws, images, lambda some: said)
    assert torch.equal(first, said.clamp(min=-60_000).half().float())
    assert torch.equal(answers.of(draws[::-1], images, None), first.flip(0))
    file = answers._file
    answers._file = Full(file)
    for _ in range(2):
        assert torch.equal(answers.of([Draw(0, 2)], images[:1], lambda some: said[:1]), first[:1])
    assert caplog.text.count("takes no more answers (No space left)") == 1
    file.close()
    with pytest.raises(ConfigError, match=r"b\.f16: cannot hold the teachers' answers \(it takes [0-9,]+ MB\)"):
        Answers(tmp_path / "b.f16", None, views=1000, images=10**8, width=1000)


class Full:
    """A file on a disk without room."""

    def __init__(self, file):
        self.file, self.name = file, file.name

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        raise OSError("No space left")


@pytest.mark.slow
def test_answers_made_before_a_training_are_those_that_it_would_ask_for(quick, teacher, cache, tmp_path, monkeypatch):
    options = quick | {"epochs": 4, "teacher": str(teacher), "distill": {"views": 2}}
    plain = atnet.train(**options, out=tmp_path / "plain").folder
    shutil.rmtree(cache)
    see, asked = Teachers.see, itertools.count()

    def breaking(self, images):
        if next(asked) == 13:
            raise KeyboardInterrupt
        return see(self, images)

    config = make_config(**options)
    monkeypatch.setattr(Teachers, "see", breaking)
    with pytest.raises(KeyboardInterrupt):
        teach(config)
    monkeypatch.setattr(Teachers, "see", see)
    kept = teach(config)
    assert (kept.views, kept.new) == (400, 140)
    assert kept.bytes == 2 * 2 * 200 * (1 + load(teacher)[0].num_features)
    assert teach(config).new == 0
    monkeypatch.setattr(Teachers, "see", lambda self, images: pytest.fail("asked again"))
    first, second = (
        load_file(folder / "last.safetensors")
        for folder in (plain, atnet.train(**options, out=tmp_path / "taught").folder)
    )
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-4, msg=name)
    with pytest.raises(ConfigError, match="give both"):
        teach(make_config(**quick, teacher=str(teacher)))


@pytest.mark.slow
def test_what_a_teacher_sees_is_kept_whatever_its_classifier(quick, stranger, cache, tmp_path, asked):
    options = quick | {"epochs": 1, "distill": {"views": 1}}
    atnet.train(**options, teacher=stranger, out=tmp_path / "one")
    assert sum(asked) == 200
    network, info = load(stranger)
    with torch.no_grad():
        network.get_classifier().weight.mul_(2)
    names = ["ant", "bee", "cow", "hen"]
    atnet.save(network, tmp_path / "other.safetensors", class_names=names, preprocess=info.preprocess, name=info.model)
    asked.clear()
    atnet.train(**options, teacher=str(tmp_path / "other.safetensors"), out=tmp_path / "two")
    assert sum(asked) == 0


def test_features_are_learned_and_a_stopped_run_goes_on_with_them(
    quick, teacher, cache, tmp_path, train_until, monkeypatch
):
    losses = []

    def noting(told, seen):
        losses.append(feature_loss(told, seen))
        return losses[-1]

    monkeypatch.setattr("atnet.training.state.feature_loss", noting)
    options = quick | {"epochs": 3, "teacher": str(teacher), "distill": {"features": 1.0, "views": 3}}
    run = atnet.train(**options, out=tmp_path / "whole")
    assert len(losses) == 30
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    train_until(2, **options, out=tmp_path / "broken")
    broken = atnet.train(resume=tmp_path / "broken")
    first, second = (load_file(one.folder / "last.safetensors") for one in (run, broken))
    assert first.keys() == load(run.folder)[0].state_dict().keys()  # the layer that told them is left out
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_features_are_of_a_teacher_that_has_some(teacher, classes, digits):
    samples, _ = open_parts(str(digits), 0.2)
    plain = Teacher(str(teacher), classes, DataConfig(), CPU)
    plain.measure(samples, batch=20, workers=0)
    [(images, _, _)] = batches_of(eval_loader(samples, plain.info.preprocess, 200, 0))
    rows = plain.standardised(plain.see(images))
    assert rows.mean(0).abs().max() < 1
    assert 0.5 < rows.std(0).mean() < 2
    with pytest.raises(ConfigError, match=r"distill.features are read out of the network as it runs"):
        make_config(distill={"features": 1.0}, compile=True)


def test_kept_answers_are_of_single_images(quick, teacher):
    with pytest.raises(ConfigError, match=r"distill.views keeps answers to single images"):
        make_config(**quick | {"teacher": str(teacher), "distill": {"views": 2}, "augment": {"mixup": 0.2}})


def test_a_folder_without_weights_is_named(tmp_path, classes):
    with pytest.raises(WeightsError, match=rf"--teacher {tmp_path}: no weights in it"):
        Teacher(f"local-dir:{tmp_path}", classes, dataclasses.replace(DataConfig()), CPU)
