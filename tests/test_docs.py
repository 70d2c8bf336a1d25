"""The files under docs/ that are to be used as they are."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from atnet.cli import app
from atnet.config import make_config
from atnet.models.cost import cost_of
from atnet.models.load import create_classifier
from atnet.training.norm import RunningStatistics
from atnet.training.plan import counted_speed, plan_run
from make_map import make_map

ROOT = Path(__file__).parent.parent
SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
IMAGENET = (ROOT / "docs" / "imagenet.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", SCALING + IMAGENET, re.M | re.S)
LAUNCHES = [block for block in BLOCKS if "torchrun" in block]


@pytest.mark.parametrize("command", [*LAUNCHES, (ROOT / "docs" / "slurm.sh").read_text(encoding="utf-8")])
def test_a_launch_is_sound_shell_and_names_options_that_there_are(command):
    assert subprocess.run(["bash", "-n"], input=command, text=True).returncode == 0
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    assert "torchrun" in words
    for recipe in (word for word in words if word.startswith("recipes/")):
        assert make_config(ROOT / recipe).epochs > 0


def test_the_figures_of_the_table_are_those_of_the_networks():
    for name, megabytes in (("xxxs", 14), ("s", 198), ("l", 441)):
        model = create_classifier(name, classes=1000, size=224)
        assert round(8 * sum(p.numel() for p in model.parameters()) / 1e6) == megabytes
        assert f"{name.upper()} {megabytes} MB" in SCALING
    channels = len(RunningStatistics(create_classifier("xxxs", classes=1000, size=224)).read()) // 2
    assert f"{8 * channels / 1000:.0f} kB a part" in SCALING


@pytest.mark.parametrize(("name", "share"), [("xxxs", 0.02), ("xxs", 0.02), ("xs", 0.02), ("s", 0.1), ("l", 0.1)])
def test_the_hours_on_imagenet_are_those_of_the_model(name, share):
    config = make_config(ROOT / "recipes" / f"imagenet_{name}.yaml")
    speed = counted_speed(config, teraflops=312, utilisation=share)
    plan = plan_run(
        config, images=(1_281_167, 1_281_167 // 25), devices=8, images_per_second=speed, gigabytes_per_second=10
    )
    crops = config.area(0, config.epochs) * 1_281_167  # of full size
    operations = 6 * cost_of(config.model, config.data.train_side).macs * crops / 1e18
    figures = {f"{operations:.2f}", f"{share:.0%}", f"{speed:,.0f}", f"{plan.seconds / 3600:.1f}", f"{plan.disk:,.0f}"}
    assert figures <= row_of(IMAGENET, name)


def test_the_efficiencies_of_the_table_are_those_of_the_model():
    for name, speed in (("xxxs", 4000), ("s", 1200), ("l", 600)):
        config = make_config(ROOT / "recipes" / "imagenet.yaml", model=name)
        found = [
            plan_run(
                config, images=(1_281_167, 50_000), devices=n, images_per_second=speed, gigabytes_per_second=10
            ).efficiency
            for n in (2, 8, 32)
        ]
        assert {f"{speed:,}", *(f"{share:.2f}" for share in found)} <= row_of(SCALING, name)


def row_of(page: str, size: str) -> set[str]:
    """The cells of the line of a page's table that begins with a size."""
    [row] = re.findall(rf"^\| {size.upper()} \|(.*)\|$", page, re.M)
    return {cell.strip() for cell in row.split("|")}


def test_the_commands_page_is_that_of_the_commands():
    """Made anew by `make reference`."""
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == app.generate_docs(output_format="markdown")


def test_each_command_has_a_how_to():
    text = (ROOT / "docs" / "howto.md").read_text(encoding="utf-8")
    named = {name for line in re.findall(r"^## .*: (.*)$", text, re.M) for name in line.split(", ")}
    assert named == {name for name in app if not name.startswith("-")} - {"digits"}


def test_pages_lead_to_files_that_there_are():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_map_is_of_the_files_there_are():
    listed = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`src/\S+`", listed)) == set(re.findall(r"`src/\S+`", make_map())), "make reference"
