import dataclasses
import itertools
import json
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import atnet
from atnet.cli.table import table
from atnet.config import make_config
from atnet.errors import ConfigError
from atnet.study.table import BEGIN, END, add_record, points_of, read_results, row_name, write_table
from atnet.viz.plots import part_names

README = f"# Title\n\n{BEGIN}\nold\n{END}\n\nAfter.\n"


def record(model="atnet_xxxs", top1=80.0, seed=0, epochs=10):
    return {
        "model": model, "data": "imagenette", "size": 128, "epochs": epochs, "seed": seed,
        "top1": {"last": 1.0, "ema": top1}, "top5": {"last": 1.0, "ema": 97.5},
    }  # fmt: skip


@pytest.fixture
def place(tmp_path):
    """A project of a README and two seeds of XXXS and one peer."""
    (tmp_path / "README.md").write_text(README)
    folder = tmp_path / "results" / "imagenette-128px-10ep"
    folder.mkdir(parents=True)
    for name, one in (
        ("xxxs-seed0", record()),
        ("xxxs-seed1", record(top1=81.0, seed=1)),
        ("mobilenetv3_small_100-seed0", record("mobilenetv3_small_100", 70.0)),
    ):
        (folder / f"{name}.json").write_text(json.dumps(one))
    return tmp_path


def make(place):
    table(results=place / "results", readme=place / "README.md", plot=place / "docs" / "accuracy.png")
    return (place / "README.md").read_text()


def cells(text, name):
    [row] = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_twice_gives_the_same_bytes_and_leaves_the_rest(place):
    text = make(place)
    image = (place / "docs" / "accuracy.png").read_bytes()
    assert make(place) == text
    assert (place / "docs" / "accuracy.png").read_bytes() == image
    assert text.startswith("# Title\n\n")
    assert text.endswith("\n\nAfter.\n")
    assert "old" not in text
    assert "?" not in text


def test_means_and_spreads_come_from_the_records(place):
    text = make(place)
    assert cells(text, "xxxs")[9:] == ["80.50 ± 0.71", "97.50"]
    assert cells(text, "mobilenetv3_small_100")[9:] == ["70.00", "97.50"]
    assert cells(text, "mobilenetv3_small_100")[1:5] == ["2.54M", "1.52M", "57M", ""]
    assert cells(text, "s")[9:] == ["", ""]


def test_a_column_appears_with_its_record_and_a_deleted_record_empties_its_cell(place):
    assert "20 epochs" not in make(place)
    folder = place / "results" / "imagenette-128px-20ep"
    folder.mkdir()
    (folder / "xxs-seed0.json").write_text(json.dumps(record("atnet_xxs", epochs=20)))
    text = make(place)
    assert "Top-1, imagenette 128 px, 20 epochs" in text
    assert cells(text, "xxs")[9:] == ["", "", "80.00", "97.50"]
    (place / "results" / "imagenette-128px-10ep" / "mobilenetv3_small_100-seed0.json").unlink()
    text = make(place)
    assert "mobilenetv3" not in text
    (folder / "xxs-seed0.json").unlink()
    assert "20 epochs" not in make(place)


def test_the_image_is_of_the_data_and_size_with_the_most_rows(place):
    other = place / "results" / "digits-32px-1ep"
    other.mkdir()
    (other / "xxxs-seed0.json").write_text(json.dumps(record(top1=99.0) | {"data": "digits", "size": 32, "epochs": 1}))
    [(title, points), (second, _)] = points_of(read_results(place / "results")).items()
    assert (title, second) == ("imagenette 128 px", "digits 32 px")
    ours = sum(p.numel() for name, p in atnet.create_model("xxxs").named_parameters() if not name.startswith("head."))
    assert [(point.row, point.epochs, point.parameters, point.top1) for point in points] == [
        ("atnet_xxxs", 10, ours, 80.5), ("mobilenetv3_small_100", 10, 2_542_856 - 1000 * 1025, 70.0)
    ]  # fmt: skip
    assert points[0].spread == pytest.approx(0.7071, abs=1e-4)
    assert points[1].spread is None


def test_no_name_covers_another_or_a_point():
    figure = Figure()
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    names = [
        axes.annotate(f"network {i}", (0.2, y), xytext=(7, 3), textcoords="offset points")
        for i, y in enumerate((0.5, 0.501, 0.52, 0.52, 0.9))
    ]
    alone = names[-1].get_position()
    part_names(axes, names)
    boxes = [name.get_window_extent() for name in names]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert names[-1].get_position() == alone
    dots = [axes.transData.transform(name.xy) for name in names]
    assert not any(box.contains(*dot) for box in boxes for dot in dots)


def test_without_records_there_are_sizes_and_no_accuracy(place):
    for path in (place / "results").rglob("*.json"):
        path.unlink()
    text = make(place)
    assert "Top-1" not in text
    assert cells(text, "l")[1:2] == ["55.13M"]


def test_a_run_is_published_once_and_without_its_machines_paths(quick, place):
    run = atnet.train(**quick | {"model": "xxxs", "weights": "none"}, out=place / "run")
    environment = place / "run" / "record.json"
    known = json.loads(environment.read_text())
    known["environment"]["command"] = f"atnet train {Path.cwd()}/recipes/a.yaml --data '/home/me/my photos'"
    environment.write_text(json.dumps(known))
    path = add_record(run.folder, place / "results")
    assert path == place / "results" / "digits-32px-1ep" / "xxxs-seed0.json"
    assert json.loads(path.read_text())["environment"]["command"] == "atnet train recipes/a.yaml --data 'my photos'"
    with pytest.raises(ConfigError, match="there is a record already"):
        add_record(run.folder, place / "results")
    assert "Top-1, digits 32 px, 1 epochs" in make(place)


def test_a_row_is_of_one_recipe_on_one_data_set(quick, place):
    def run(name, **options):
        return atnet.train(**quick | options, out=place / name).folder

    add_record(run("one"), place / "results")
    add_record(run("two", seed=1, threads=1, keep=1), place / "results")
    with pytest.raises(ConfigError, match=r"of the same row, with optim.lr 0.012 where this run has 0.003"):
        add_record(run("slow", seed=2, optim={"lr": 3e-3}), place / "results")
    [gone, *_] = sorted((place / "digits" / "train" / "nine").iterdir())
    gone.unlink()
    with pytest.raises(ConfigError, match=r"with train_images 200 where this run has 199"):
        add_record(run("fewer", seed=2), place / "results")


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("xxs-80-0/ema.safetensors", "xxs-80-0"),
        ("weights/xxxs.imagenette.safetensors", "xxxs.imagenette"),
        ("photos/a.safetensors", "a"),
        ("local-dir:tmp/deit", "deit"),
        ("hf-hub:alice/horn@0123456789abcdef", "horn"),
    ],
)
def test_rows_name_the_weights_that_they_come_from(weights, name):
    assert row_name(record() | {"config": {"teacher": [weights]}}) == f"atnet_xxxs, taught by {name}"
    assert row_name(record() | {"config": {"weights": weights}}) == f"atnet_xxxs, from {name}"


def test_what_cannot_be_a_table_is_said(place):
    (place / "results" / "imagenette-128px-10ep" / "bad.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"bad.json: not the record of a run"):
        make(place)
    (place / "results" / "imagenette-128px-10ep" / "bad.json").unlink()
    (place / "README.md").write_text("# No place\n")
    with pytest.raises(ConfigError, match="no place for the table"):
        make(place)


def test_the_published_table_is_what_the_records_say(tmp_path):
    root = Path(__file__).parent.parent.parent
    text = (root / "docs" / "results.md").read_text()
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text(text)
    table(results=root / "results", readme=page, plot=tmp_path / "docs" / "accuracy.png")
    assert page.read_text() == text
    assert not re.search(r"^\|.*\?.*\|$", text, re.M)


def test_the_images_link_is_from_where_the_document_lies(place):
    """Also if one of the two is given from the root on, and the other is not, or the image lies elsewhere."""
    for image, link in (
        (place / "docs" / "accuracy.png", "docs/accuracy.png"),
        (Path("accuracy.png"), "accuracy.png"),
        (place.parent / "accuracy.png", "../accuracy.png"),
    ):
        write_table(read_results(place / "results"), Path("README.md"), image)
        assert f"![Top-1 over parameters]({link})" in (place / "README.md").read_text()


def test_what_was_taught_or_went_on_from_weights_has_a_row_of_its_own(place):
    folder = place / "results" / "imagenette-128px-10ep"
    for name, top1, changes in (
        ("soft", 85.0, {"teacher": "s-long/ema.safetensors", "distill": {"kind": "soft"}}),
        ("hard", 84.0, {"teacher": "s-long/ema.safetensors", "distill": {"kind": "hard"}}),
        ("on", 86.0, {"weights": "imagenet/ema.safetensors"}),
    ):
        other = record(top1=top1) | {"config": {"weights": "", "teacher": ""} | changes}
        (folder / f"{name}.json").write_text(json.dumps(other))
    text = make(place)
    assert cells(text, "xxxs")[9] == "80.50 ± 0.71"
    assert cells(text, "xxxs, taught by s-long")[9] == "85.00"
    assert cells(text, "xxxs, taught the classes of s-long")[9] == "84.00"
    assert cells(text, "xxxs, from imagenet")[1] == cells(text, "xxxs")[1]


@pytest.mark.parametrize(("recipe", "row"), [("published", "xxxs, published recipe"), ("best", "xxxs")])
def test_the_published_recipe_has_a_row_of_its_own(place, recipe, row):
    config = make_config(Path(__file__).parent.parent.parent / "recipes" / f"imagenette_{recipe}.yaml")
    other = record(top1=60.0) | {"config": dataclasses.asdict(config)}
    (place / "results" / "imagenette-128px-10ep" / "other.json").write_text(json.dumps(other))
    assert cells(make(place), row)[9].startswith("60.00" if recipe == "published" else "73.67")
