"""The report of a real run, of images whose names are attacks too."""

import contextlib
import csv
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image

import atnet
from atnet.errors import ConfigError
from atnet.run.record import read_metrics, read_predictions
from atnet.viz.plots import drawable
from atnet.viz.report import write_report

TAGS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "b", "ul", "li", "table", "thead",
    "tbody", "tr", "th", "td", "span", "img", "pre", "code",
}  # fmt: skip
ATTACKS = [
    "<script>alert(1)", "<img src=x onerror=alert(1)>", "\"><svg onload=alert(1)>", "'onmouseover='alert(1)",
    "{{7*7}}", "{% raw %}", "&lt;b&gt;", "javascript:alert(1)", "<!--", "<style>*{display:none}",
    "\x1b[2J", "\x1b]0;owned\x07", "[bold red]x[", "\x9b31m", "a\rb", "a\nb", "\u202egnp.exe",
    "\x08\x08\x08", "[link=x]y", "$\\frac{a$",
    "=1+1", "=HYPERLINK(\"x\")", "+1", "-1+1|cmd", "@SUM(1)", "=cmd|' C'!A0", "a,b", "a\"b", "'=1", "\t=1",
    "日本語", "é́", "😀", "a" * 120, "CON", " lead", "trail ", "%s%n", "a..b", "$(id)", "`id`", "a&b", "a;b", "*", "?",
    "null", "nan", "1e5", "True", "--weights",
]  # fmt: skip


class Seen(HTMLParser):
    """The elements of a page, their attributes and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """A finished run on fifty classes of two images, a hundred names, each an attack."""
    home = tmp_path_factory.mktemp("attacked")
    assert len(set(ATTACKS)) == 50
    for k, name in enumerate(ATTACKS):
        folder = home / "data" / name
        folder.mkdir(parents=True)
        for i, other in enumerate((ATTACKS[k - 1], ATTACKS[k - 2])):
            Image.new("RGB", (32, 32), (5 * k, 255 - 5 * k, 100 * i)).save(folder / f"{other}.png"[-200:], "PNG")
    data = {"source": str(home / "data"), "size": 32, "workers": 0, "val_share": 0.5}
    with contextlib.chdir(home):
        return atnet.train(batch=20, epochs=1, data=data, out="run").folder.absolute()


def test_a_report_holds_everything_and_fetches_nothing(quick, tmp_path):
    run = atnet.train(**quick | {"epochs": 3}, out=tmp_path / "run")
    path = write_report(run.folder)
    assert path == run.folder / "report.html"
    assert path.stat().st_size < 5_000_000
    page = path.read_text(encoding="utf-8")
    seen = Seen(page)
    assert {tag for tag, _ in seen.tags} <= TAGS
    assert re.search(r"<code>--[a-z.-]+( [\d.]*\d)?</code>", page), "advised options are not broken by a narrow page"
    images = [attributes["src"] for tag, attributes in seen.tags if tag == "img"]
    assert len(images) == 6
    assert all(source.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for source in images)
    assert not re.search(r"https?://|url\(|@import|<link|<script", page)
    kept = run.record["top1"]["ema"]
    for expected in (
        f"{kept:.2f}%",
        f"atnet_{quick['model']} on digits",
        "macro F1",
        "six",
        "expected calibration error",
        "seed: 0",
    ):
        assert expected in seen.text
    rows = read_predictions(run.folder)
    assert 100 * sum(row["class"] == row["called"] for row in rows) / len(rows) == pytest.approx(kept, abs=1e-3)
    wrong = sorted((row for row in rows if row["class"] != row["called"]), key=lambda row: -float(row["confidence"]))
    places = [seen.text.index(row["image"]) for row in wrong[:16]]
    assert places
    assert places == sorted(places)


def test_a_report_is_made_anew_but_replaces_no_other_file(quick, tmp_path):
    run = atnet.train(**quick, out=tmp_path / "run")
    assert write_report(run.folder).read_bytes() == write_report(run.folder).read_bytes()
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(ConfigError, match=r"mine.html: exists; choose another --out"):
        write_report(run.folder, tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_a_report_draws_what_is_not_there_and_says_what_cannot_be_drawn(quick, digits, tmp_path):
    run = atnet.train(**quick, out=tmp_path / "run").folder
    drawn = ["confusion.png", "curves.png", "mistakes.png", "samples.png"]
    assert not [path for path in drawn if (run / path).exists()]
    assert "is not in the run folder" not in write_report(run).read_text()
    for path in drawn:
        (run / path).unlink()
    digits.rename(tmp_path / "gone")
    page = write_report(run).read_text()
    assert "samples.png is not in the run folder" in page
    assert "curves.png is not in the run folder" not in page


def test_a_report_of_a_run_without_its_images_is_made_without_what_was_looked_at(quick, digits, tmp_path):
    run = atnet.train(**quick, out=tmp_path / "run")
    assert "what spoke for the class called" in write_report(run.folder).read_text()
    shutil.rmtree(digits)
    page = write_report(run.folder).read_text()
    assert f"Not drawn: {digits}: no such folder" in page
    assert page.count("<img") == 5


def test_edited_predictions_are_refused(quick, tmp_path):
    run = atnet.train(**quick, out=tmp_path / "run")
    path = run.folder / "predictions.csv"
    path.write_text(path.read_text().replace(",six,", ",sixty,", 1))
    with pytest.raises(ConfigError, match="was one of them edited"):
        write_report(run.folder)


def test_a_hundred_names_do_nothing_in_the_report(attacked):
    seen = Seen(write_report(attacked).read_text(encoding="utf-8"))
    assert {tag for tag, _ in seen.tags} <= TAGS
    for tag, attributes in seen.tags:
        assert set(attributes) <= {"lang", "charset", "name", "content", "class", "style", "src", "alt"}, tag
    assert sum(tag == "tr" for tag, _ in seen.tags) >= 50
    for name in ("<script>alert(1)", "{{7*7}}", "{% raw %}", "&lt;b&gt;", "日本語"):
        assert name in seen.text
    assert not set(map(chr, [*range(9), *range(11, 32), *range(127, 160), 0x202E])) & set(seen.text)


def test_a_hundred_names_do_nothing_in_a_spreadsheet(attacked):
    with (attacked / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + 50
    assert {len(row) for row in rows} == {4}
    cells = [cell for row in rows for cell in row]
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
    assert {"'=1+1", "'-1+1|cmd"} <= set(cells)
    assert all(cell.isprintable() for cell in cells)


@pytest.mark.slow
def test_a_hundred_names_do_nothing_in_the_terminal(attacked, tmp_path):
    shutil.copytree(attacked, tmp_path / "again")
    image = next((attacked.parent / "data").rglob("*.png"))
    for words in (["eval"], ["predict", image, "--top", 50], ["compare", attacked, tmp_path / "again"]):
        place = ["--weights", attacked] if words[0] != "compare" else []
        command = [sys.executable, "-m", "atnet", words[0], *map(str, place), *map(str, words[1:])]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        said = done.stdout + done.stderr
        assert said.replace("\n", "").isprintable()
        assert words[0] == "compare" or "[bold red]x[" in said


def test_every_image_of_a_run_is_one(attacked):
    atnet.render_run(attacked)
    for name in ("curves", "confusion", "mistakes", "samples"):
        with Image.open(attacked / f"{name}.png") as image:
            assert min(image.size) > 200
    assert len(read_metrics(attacked)) == 1


def test_names_are_drawn_with_the_letters_that_the_font_has():
    assert drawable("日本 é $x$ \x1b", 20) == "?? é $x$ ?"
    assert drawable("a" * 50, 10) == "a" * 9 + "…"


def test_a_run_whose_images_changed_is_drawn_without_them(quick, digits, tmp_path, caplog):
    run = atnet.train(**quick, out=tmp_path / "run").folder
    (digits / "train" / "zzz").mkdir()
    (digits / "val" / "zzz").mkdir()
    for part in ("train", "val"):
        shutil.copy(next((digits / part / "one").iterdir()), digits / part / "zzz")
    assert sorted(path.name for path in atnet.render_run(run)) == ["confusion.png", "curves.png"]
    assert "other classes or images than the run had" in caplog.text
    assert "what spoke for the class called" in write_report(run).read_text()
