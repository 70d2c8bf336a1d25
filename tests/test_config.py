import os
from pathlib import Path

import pytest
import yaml

from atnet.config import make_config, read_yaml, to_yaml
from atnet.errors import ConfigError

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_yaml_out_is_yaml_in(tmp_path):
    made = make_config(
        epochs=60,
        optim={"lr": 3e-4, "betas": [0.9, 0.99]},
        schedule={"cycle": 20, "multiplier": 2, "decay": 0.5},
        data={"source": "some folder/with spaces", "mean": [0.1, 0.2, 0.3], "cache": "ram"},
    )
    assert make_config(write(tmp_path, to_yaml(made))) == made


def test_options_go_before_the_recipe_and_the_recipe_before_defaults(tmp_path):
    recipe = write(tmp_path, "epochs: 7\noptim: {lr: 1e-4, clip: 2}\n")
    made = make_config(recipe, optim={"lr": 5e-4})
    assert (made.epochs, made.optim.lr, made.optim.clip, made.batch) == (7, 5e-4, 2.0, 64)


def test_each_optimizer_has_a_learning_rate_of_its_own_where_none_is_asked_for(tmp_path):
    asked = [make_config(optim=options).optim for options in ({}, {"name": "adamw"}, {"name": "adamw", "lr": 3e-4})]
    assert [(optim.name, optim.lr) for optim in asked] == [("muon", 12e-3), ("adamw", 1e-3), ("adamw", 3e-4)]
    recipe = write(tmp_path, "optim: {name: adamw}\n")
    assert make_config(recipe, optim={"name": "muon"}).optim.lr == 12e-3


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_is_sound_and_says_its_command(recipe):
    assert make_config(recipe).weights == "", "its figures are of random weights"
    assert f"Command: atnet train recipes/{recipe.name}" in recipe.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optm: {lr: 3}", "optm.lr: there is no such setting; did you mean optim.lr"),
        ("epoch: 3", "did you mean epochs"),
        ("epochs: many", "epochs: 'many' is not a whole number"),
        ("data: {cache: disk}", "data.cache: 'disk' is not one of: none, ram"),
        ("{epochs: 0, weights: none}", "epochs=0 is a linear probe of --weights"),
        ("epochs: -1", "epochs=-1 is out of range"),
        ("optim: {lr: -1}", "optim.lr=-1.0 must be above 0"),
        ("batch: 10\noptim: {accumulate: 3}", "batch=10 does not divide into optim.accumulate=3"),
        ("epochs: 10\nschedule: {cycle: 20}", "epochs=10 ends inside a learning-rate cycle .* end at 20;"),
        ("epochs: 50\nschedule: {cycle: 20, multiplier: 2}", "cycles end at 20, 60;"),
        ("data: {size: 128, cache: ram, cache_size: 100}", "data.cache_size=100 is below the training crops' 128"),
        ("data: {size: 128, first_size: 160}", "data.first_size=160 is out of range: use 8 to the training crops' 128"),
        ("optim: 0.1", "optim is a section of options"),
        ("- a\n- b", "a recipe is a mapping"),
        ("a: [1", "not a YAML file"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: !!python/object/apply:os.system ['echo']", "not a YAML file"),
    ],
)
def test_a_bad_recipe_says_what_and_how_to_mend_it(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        make_config(write(tmp_path, text))


def test_a_bare_folder_for_data_drops_nothing_of_the_layers_below(tmp_path):
    recipe = write(tmp_path, "data: {size: 64, cache: ram}\n")
    made = make_config(recipe, data="somewhere")
    assert (made.data.source, made.data.size, made.data.cache) == ("somewhere", 64, "ram")
    made = make_config(write(tmp_path, "data: somewhere\n"), data={"size": 96})
    assert (made.data.source, made.data.size) == ("somewhere", 96)


def test_an_absent_recipe_is_said():
    with pytest.raises(ConfigError, match="nowhere.yaml: no such recipe"):
        make_config("nowhere.yaml")


def test_a_huge_recipe_is_not_read(tmp_path):
    with pytest.raises(ConfigError, match="1,100,003 bytes are more than"):
        read_yaml(write(tmp_path, "a: " + "x" * 1_100_000))


@pytest.mark.parametrize(
    ("data", "epochs", "sides"),
    [
        ({"size": 128}, 3, [128] * 3),
        ({"size": 128, "train_size": 112}, 3, [112] * 3),
        ({"size": 128, "first_size": 80}, 20, [80] * 3 + [96] * 5 + [112] * 5 + [128] * 7),
        ({"size": 128, "train_size": 100, "first_size": 72}, 6, [72, 80, 80, 96, 96, 100]),
        ({"size": 128, "first_size": 64}, 2, [64, 128]),
        ({"size": 128, "first_size": 64}, 1, [128]),
    ],
)
def test_training_crops_grow_to_their_full_size(data, epochs, sides):
    made = make_config(epochs=epochs, data=data)
    assert [made.train_side(epoch) for epoch in range(epochs)] == sides
    assert made.area(1, epochs) == pytest.approx(sum((side / sides[-1]) ** 2 for side in sides[1:]))


def test_a_configuration_is_frozen():
    with pytest.raises(AttributeError):
        make_config().epochs = 3  # type: ignore[misc]


def test_the_published_recipe_is_what_was_published():
    recipe = yaml.safe_load((RECIPES[0].parent / "imagenet.yaml").read_text())
    assert (recipe["epochs"], recipe["batch"], recipe["data"]["size"]) == (300, 1024, 224)
    assert make_config(RECIPES[0].parent / "imagenet.yaml").cycle_ends() == [20, 60, 140, 300]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("~: 1", "None is no name"),
        ("epochs: 0x" + "f" * 5000, "is not a whole number"),
        ("epochs: 1" + ":59" * 300 + ".5", "is not a whole number"),
        ("epochs: 1:30", "'1:30' is not a whole number"),
        ("epochs: 2026-01-01", "is not a whole number"),
        ("epochs: !!bool maybe", "tags"),
        ('epochs: !!int ""', "tags"),
        ("model: !!binary aGVsbG8=", "tags"),
        ("data: !!python/name:os.system", "tags"),
        ('data: "a\\0b"', "null character"),
        ("data: " + "a/" * 60_000, "more than 100,000 letters"),
        ("epochs: 1000000\nschedule: {cycle: 1e-9}", "schedule.cycle=1e-09 makes more than 10,000 cycles"),
        ("a: " + "[" * 50_000, "not a YAML file"),
        ("a: \ud800", "not UTF-8"),
    ],
)
def test_a_recipe_that_would_cost_dearly_or_crash_is_refused(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match=message):
        make_config(path)


@pytest.mark.parametrize("kind", ["pipe", "device", "loop"])
def test_a_recipe_that_is_no_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "recipe.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with pytest.raises(ConfigError, match="recipe.yaml: "):
        read_yaml(path)


def test_numbers_are_what_they_look_like(tmp_path):
    text = "a: 1_000\nb: 0x10\nc: -2.5e-3\nd: 017\ne: .inf\nf: true\ng: ~\nh: yes\n"
    assert read_yaml(write(tmp_path, text)) == {
        "a": 1000, "b": 16, "c": -0.0025, "d": "017", "e": float("inf"), "f": True, "g": None, "h": True,
    }  # fmt: skip


@pytest.mark.parametrize("digits", [20, 400, 5000])
def test_a_number_of_hundreds_of_digits_is_refused(tmp_path, digits):
    for name in ("batch", "epochs", "seed"):
        (tmp_path / "mine.yaml").write_text(f"{name}: {'9' * digits}\n")
        with pytest.raises(ConfigError, match="mine.yaml|range"):
            make_config(tmp_path / "mine.yaml")
