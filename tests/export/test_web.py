"""The page of `atnet web` in a real browser. Without Chromium (`apt-get install chromium`) its tests are skipped."""

import base64
import contextlib
import hashlib
import io
import json
import re
import struct
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from browser import DROP, answers, chromium, find_chromium, give, served
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from sklearn.datasets import load_sample_image

import atnet
from atnet.cli import main
from atnet.data.decode import decode
from atnet.data.preprocess import Preprocess
from atnet.errors import AtnetError, ConfigError, WeightsError
from atnet.export import runtime
from atnet.export.web import write_web
from atnet.weights.info import METADATA

TEN = "xxxs.imagenette"

HOSTILE = "<img src=x onerror=alert(1)>"
LONG = "a-name-without-a-place-to-break-it-which-is-longer-than-the-screen-of-a-phone"


@pytest.fixture(scope="module")
def run(_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    with contextlib.chdir(folder):
        return atnet.train(
            model="xxxs", weights="none", epochs=1, batch=20, augment={"flip": 0.0}, out=folder / "run",
            data={"source": str(_digits), "size": 64, "crop_pct": 0.9, "workers": 0},
        ).folder  # fmt: skip


@pytest.fixture(scope="module")
def site(run: Path) -> Path:
    try:
        runtime.find_runtime()
    except ConfigError as error:
        pytest.skip(str(error))
    return write_web(run.parent / "site", run).path


@pytest.fixture(scope="module")
def hostile_site(site: Path) -> Path:
    """The same network, of an ONNX file whose classes are called to do harm."""
    model = onnx.load(site / "model.onnx")
    [said] = [entry for entry in model.metadata_props if entry.key == METADATA]
    info = json.loads(said.value)
    info["class_names"] = [f"{HOSTILE}{i}" for i in range(5)] + [f"{LONG}{i}\u202e\x07" for i in range(5)]
    said.value = json.dumps(info)
    onnx.save(model, site.parent / "hostile.onnx")
    return write_web(site.parent / "hostile", site.parent / "hostile.onnx").path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium, or put chromium or google-chrome on the PATH")
    with chromium(path) as found:
        yield found


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a site; whatever else the test finds, nothing was asked of another origin, and the policy was kept."""
    asked: list[bool] = []
    wrong: list[str] = []
    with contextlib.ExitStack() as stack:

        def open_page(folder: Path, *, ready: str = "Ready.", **options) -> Page:
            address = stack.enter_context(served(folder))
            page = stack.enter_context(browser.new_context(**options)).new_page()
            page.on("request", lambda request: asked.append(request.url.removeprefix("blob:").startswith(address)))
            page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.goto(address)
            expect(page.locator("#status")).to_have_text(re.compile(ready))
            return page

        yield open_page
    assert asked
    assert all(asked)
    assert [text for text in wrong if "404" not in text] == []


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg"))


def seen_through(image: Image.Image) -> Image.Image:
    """Transparent at the left and at the top."""
    image = image.convert("RGBA")
    across, down = np.linspace(0, 127, image.width), np.linspace(0, 128, image.height)
    image.putalpha(Image.fromarray(np.add.outer(down, across).astype(np.uint8)))
    return image


def turned(flag: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = flag
    return exif


def wide_colours() -> bytes:
    """An ICC profile with Adobe RGB's primaries, as ICC.1 lays it out."""
    number = struct.Struct(">i")

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(number.pack(round(value * 65536)) for value in values)

    curve = b"curv" + struct.pack(">IIHxx", 0, 1, round(2.2 * 256))
    tags = {
        b"desc": b"desc" + struct.pack(">II", 0, 5) + b"wide\0" + bytes(79),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"wtpt": xyz(0.9642, 1, 0.8249),
        b"rXYZ": xyz(0.60974, 0.31111, 0.01947),
        b"gXYZ": xyz(0.20528, 0.62567, 0.06087),
        b"bXYZ": xyz(0.14919, 0.06322, 0.74457),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    places, body = b"", b""
    for name, value in tags.items():
        places += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(value))
        body += value
    whole = struct.pack(">I", len(tags)) + places + body
    head = struct.pack(">I4sI12s12x4s28x", 128 + len(whole), b"lcms", 0x02400000, b"mntrRGB XYZ ", b"acsp")
    return head + xyz(0.9642, 1, 0.8249)[8:] + bytes(48) + whole


IMAGES = {
    "photo.jpg": lambda: saved(photo(), "JPEG", quality=90),
    "large.jpg": lambda: saved(photo().resize((4500, 3000)), "JPEG", quality=80, progressive=True),
    "upright.jpg": lambda: saved(photo(), "JPEG", exif=turned(6)),
    "mirrored.jpg": lambda: saved(photo(), "JPEG", exif=turned(5)),
    "see-through.png": lambda: saved(seen_through(photo()), "PNG"),
    "turned.png": lambda: saved(photo(), "PNG", exif=turned(8)),
    "grey.png": lambda: saved(photo().convert("L"), "PNG"),
    "colours.gif": lambda: saved(photo().convert("P"), "GIF"),
    "ink.jpg": lambda: saved(photo().convert("CMYK"), "JPEG"),
    "photo.webp": lambda: saved(photo(), "WEBP", quality=80),
    "small.png": lambda: saved(photo().resize((31, 20)), "PNG"),
    "wide-colours.jpg": lambda: saved(photo(), "JPEG", icc_profile=wide_colours()),
}


def test_an_image_gets_the_answer_it_gets_in_python(site, visit, tmp_path):
    page = visit(site)
    for i, (name, make) in enumerate(IMAGES.items()):
        content = make()
        Path(name).write_bytes(content)
        [there] = atnet.predict(name, site / "model.onnx")
        said = give(page, name, content, ("drop", "choose", "paste")[i % 3])
        here = answers(page)
        assert list(here) == [called for _, called, _ in there.top], name
        assert list(here.values()) == pytest.approx([share for _, _, share in there.top], abs=1e-3), name
        likeliest, share = next(iter(here.items()))
        assert said.startswith(f"{name}: {likeliest}, {100 * share:.1f}%. Answered in "), said
        expect(page.get_by_role("img", name=name)).to_be_visible()


def test_the_page_agrees_with_the_weights_before_their_export(run, site, visit, digits):
    page = visit(site)
    for image in sorted((digits / "val").rglob("*.png"))[::12]:
        [there] = atnet.predict(image, run)
        give(page, image.name, image.read_bytes())
        assert answers(page) == pytest.approx({name: share for _, name, share in there.top}, abs=1e-2), "16 bits"


MAP = "map => [...map.getContext('2d').getImageData(0, 0, map.width, map.height).data]"


def test_where_it_looked_is_what_explain_says(site, visit, tmp_path):
    shipped = write_web(tmp_path / "shipped", TEN).path
    about = json.loads((shipped / "network.json").read_text())["preprocess"]
    page = visit(shipped, viewport={"width": 900, "height": 900})
    expect(page.locator("#look")).to_be_hidden()
    for name in ("photo.jpg", "upright.jpg"):
        content = IMAGES[name]()
        Path(name).write_bytes(content)
        [there] = atnet.explain(name, TEN)
        expected = there.maps.attention[-1, 0].mean(0)
        give(page, name, content)
        page.get_by_label("Show where it looked").set_checked(True)
        shown = 1 - np.reshape(page.locator("#map").evaluate(MAP), (*expected.shape, 4))[..., 3] / 166
        assert shown.min() < 0.1, "attention that is even would prove nothing"
        np.testing.assert_allclose(shown, np.sqrt(expected / expected.max()), atol=0.02, err_msg=name)
        over, image = page.locator("#map").bounding_box(), page.locator("#image").bounding_box()
        square = about["size"] / int(about["size"] / about["crop_pct"]) * min(image["width"], image["height"])
        assert (over["width"], over["height"]) == pytest.approx((square, square), abs=1.5)
        for side, begin in (("width", "x"), ("height", "y")):
            middle = image[begin] + image[side] / 2
            assert over[begin] + over[side] / 2 == pytest.approx(middle, abs=1.5)


@pytest.mark.slow
def test_a_network_without_attention_shows_no_map(quick, site, visit, tmp_path):
    weights = atnet.train(**quick | {"model": "xxxs+attention_depths=0,0"}, out=tmp_path / "without").folder
    page = visit(write_web(tmp_path / "no-map", weights).path)
    assert "Answered in " in give(page, "photo.jpg", IMAGES["photo.jpg"]())
    expect(page.locator("#look")).to_be_hidden()


@pytest.mark.slow
def test_several_heads_say_how_many_agree(quick_star, site, visit, tmp_path):
    weights = atnet.train(**quick_star, out=tmp_path / "several").folder
    page = visit(write_web(tmp_path / "of-several", weights).path)
    for image in sorted((tmp_path / "digits" / "val").rglob("*.png"))[::10]:
        [there] = atnet.predict(image, tmp_path / "of-several" / "model.onnx")
        agree = sum(head[1] == there.name for head in there.heads)
        assert f"%. {agree} of 5 heads say so by themselves. Answered in " in give(page, image.name, image.read_bytes())


INPUT = """async ([content, preprocess, limits]) => {
    const [image, transform] = [await import("./image.js"), await import("./preprocess.js")];
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const { bitmap } = await image.openImage(new File([bytes], "it"), limits);
    return [...transform.preprocess(bitmap, preprocess)];
}"""


def test_the_networks_input_is_pythons_to_the_last_bit(site, visit):
    page = visit(site)
    about = json.loads((site / "network.json").read_text())
    ours = Preprocess.from_dict(about["preprocess"])
    photos = [photo().resize(size) for size in ((640, 427), (333, 500), (64, 64), (70, 69), (37, 51), (1999, 72))]
    for change in (
        {}, {"interpolation": "bilinear"}, {"size": 75, "crop_pct": 1.0}, {"size": 33, "crop_pct": 0.5},
        {"resize": "squash"}, {"resize": "letterbox"}, {"resize": "letterbox", "crop_pct": 1.0},
    ):  # fmt: skip
        transform = replace(ours, **change)
        for image in photos:
            content = saved(image, "PNG")
            asked = [base64.b64encode(content).decode(), asdict(transform), about["limits"]]
            found = np.array(page.evaluate(INPUT, asked), np.float32).reshape(3, transform.size, transform.size)
            assert np.array_equal(found, transform(decode(content))), (image.size, change)


def test_what_is_no_image_gets_a_message_and_the_next_one_an_answer(site, visit):
    page = visit(site)
    whole, whole_png = IMAGES["photo.jpg"](), IMAGES["grey.png"]()
    half = len(whole_png) // 2
    unreadable = "damaged, or no image that this browser can read; choose a JPEG, PNG or WebP image"
    for name, content, message in (
        ("text.jpg", b"only text", unreadable),
        ("half.jpg", whole[: len(whole) // 2], unreadable),
        ("damaged.png", whole_png[:half] + bytes([whole_png[half] ^ 255]) + whole_png[half + 1 :], unreadable),
        ("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', unreadable),
        ("empty.jpg", b"", "an empty file; choose another"),
        ("huge.png", saved(Image.new("1", (8000, 8000)), "PNG"),
         "8,000 x 8,000 pixels are more than the 50,000,000 allowed; make it smaller"),
        ("long.png", saved(Image.new("1", (17000, 300)), "PNG"),
         "17,000 x 300 pixels, a side of more than 16,384; make it smaller"),
        ("strip.png", saved(Image.new("1", (1000, 9)), "PNG"), "sides of 1,000 x 9 pixels are too unequal; crop it"),
    ):  # fmt: skip
        assert give(page, name, content) == f"{name}: {message}"
        assert page.locator("#result").is_hidden()
    page.evaluate(DROP.replace("data.items.add", "void "), ["drop", "", ""])
    expect(page.locator("#status")).to_have_text("No image in it: save the image as a file, and choose that.")
    assert "Answered in" in give(page, "photo.jpg", whole)
    assert len(answers(page)) == 5


def test_a_file_of_too_many_bytes_is_refused_unread(site, visit, tmp_path):
    about = json.loads((site / "network.json").read_text())
    page_folder = tmp_path / "site"
    page_folder.mkdir()
    for file in site.iterdir():
        (page_folder / file.name).symlink_to(file)
    (page_folder / "network.json").unlink()
    about["limits"]["bytes"] = 1000
    (page_folder / "network.json").write_text(json.dumps(about))
    said = give(visit(page_folder), "large.jpg", IMAGES["photo.jpg"]()[:1001])
    assert said == "large.jpg: 1,001 bytes are more than the 1,000 allowed; make it smaller"


def test_a_network_that_cannot_be_loaded_is_said(site, visit, tmp_path):
    for file in site.iterdir():
        if file.name != "model.onnx":
            (tmp_path / file.name).symlink_to(file)
    page = visit(tmp_path, ready="could not be loaded")
    assert page.locator("#status").inner_text().startswith("The network could not be loaded: model.onnx: 404")


def test_the_keyboard_is_enough(site, visit, tmp_path):
    page = visit(site)
    page.on("filechooser", lambda chooser: None)  # listening from here on: begun at the key press, it may come too late
    (tmp_path / "photo.jpg").write_bytes(IMAGES["photo.jpg"]())
    page.keyboard.press("Tab")
    expect(page.get_by_label("Choose an image")).to_be_focused()
    outline = page.locator("label.way").first.evaluate("label => getComputedStyle(label).outlineStyle")
    assert outline == "solid", "the focus can be seen"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(tmp_path / "photo.jpg")
    expect(page.locator("#status")).to_have_text(re.compile("^photo.jpg: .* Answered in"))
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.locator("#map")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#classes")).to_be_visible()
    assert page.locator("#classes").inner_text() == "eight, five, four, nine, one, seven, six, three, two, zero"


def test_a_screen_reader_hears_the_answer(site, visit):
    page = visit(site)
    said = give(page, "photo.jpg", IMAGES["photo.jpg"]())
    assert page.locator("#status").get_attribute("aria-live") == "polite"
    heard = page.locator("main").aria_snapshot()
    shown = [f"{name} {100 * share:.1f}%" for name, share in answers(page).items()]
    assert f'- status: "{said}"' in heard
    assert re.findall(r"- listitem: (.*)", heard) == shown
    assert 'img "photo.jpg"' in heard
    assert 'button "Choose an image"' in heard


def test_a_phones_width_needs_no_sideways_scrolling(hostile_site, visit):
    page = visit(hostile_site, viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    expect(page.get_by_text("Take a photo")).to_be_visible()
    assert page.locator("#take").get_attribute("capture") == "environment"
    page.locator("summary").click()
    for name, content in ((f"{LONG}.jpg", IMAGES["large.jpg"]()), (f"{LONG}.png", b"text")):
        give(page, name, content)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.evaluate("window.innerWidth") == 360


def test_names_are_shown_as_they_are_and_do_nothing(hostile_site, visit):
    page = visit(hostile_site)
    said = give(page, f"{HOSTILE}.jpg", IMAGES["photo.jpg"]())
    assert said.startswith(f"{HOSTILE}.jpg: ")
    page.locator("summary").click()
    shown = [*answers(page), *page.locator("#classes").inner_text().split(", ")]
    names = [f"{HOSTILE}{i}" for i in range(5)] + [f"{LONG}{i}??" for i in range(5)]
    assert set(shown) == set(names)
    assert page.locator("img").count() == 1


def test_dark_and_light_are_those_of_the_system(site, visit):
    page = visit(site, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(20, 24, 29)"
    page.emulate_media(color_scheme="light")
    assert page.evaluate(ground) == "rgb(255, 255, 255)"


def test_the_policy_stops_what_is_not_the_pages_own(site, browser):
    with served(site) as address, browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        blocked = """async () => {
            const stopped = [];
            document.addEventListener("securitypolicyviolation", (event) => stopped.push(event.effectiveDirective));
            await fetch("http://127.0.0.2:1/").catch(() => {});
            document.body.append(Object.assign(document.createElement("img"), { src: "http://127.0.0.2:1/" }));
            document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = 1" }));
            await new Promise((done) => setTimeout(done, 100));
            return [stopped.sort(), window.ran];
        }"""
        assert page.evaluate(blocked) == [["connect-src", "img-src", "script-src-elem"], None]


def test_the_command_says_what_it_wrote_and_what_to_type_next(site, run, capsys):
    main(["web", "--weights", str(site / "model.onnx"), "page"])
    said = capsys.readouterr().out
    assert re.search(r"Written: page \(.* MB, .* loads .* MB, compressed\): 10 classes at 64 px", said)
    assert "Next: python -m http.server --directory page, and open http://localhost:8000" in said
    names = {path.relative_to(site).as_posix() for path in site.rglob("*")}
    assert {path.relative_to("page").as_posix() for path in Path("page").rglob("*")} == names
    assert {"onnxruntime-web/LICENSE", "onnxruntime-web/ThirdPartyNotices.txt"} <= names
    assert Path("page/model.onnx").read_bytes() == (site / "model.onnx").read_bytes()
    done = write_web("again", site / "model.onnx")
    assert done.bytes == sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 20e6
    assert done.loaded < 7e6


def test_nothing_is_overwritten_and_nothing_half_written(site, run, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="site: exists and is not empty; choose another folder"):
        write_web(site, run)
    Path("text.onnx").write_text("text")
    with pytest.raises(WeightsError, match="text.onnx: not an ONNX file"):
        write_web("new", "text.onnx")
    with pytest.raises(AtnetError, match="no such run, folder or weights file"):
        write_web("new", "nowhere")
    with pytest.raises(ConfigError, match=r"text.onnx/new: cannot be written \(.*\); choose another folder"):
        write_web("text.onnx/new", site / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.onnx"]


def npm_that(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a program called npm, and nothing else of that name, before the user's own."""
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_without_a_network_the_page_says_what_it_needs_and_nothing_is_written(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ATNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="no npm here, which fetches onnxruntime-web .*install Node.js"):
        write_web("new", run)
    npm_that(tmp_path / "bin", "echo no network >&2; exit 1", monkeypatch)
    with pytest.raises(ConfigError, match=r"onnxruntime-web .* can't be fetched by npm \(no network\)"):
        write_web("new", run)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bin", "cache", "npm"]


def test_the_runtime_is_fetched_once(site, tmp_path, monkeypatch):
    folder = runtime.find_runtime()
    files = {name: (folder / name).read_bytes() for name in runtime.FILES.values()}
    archive = tmp_path / "archive.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for inside, name in runtime.FILES.items():
            tar.add(folder / name, f"package/dist/{inside}")
    digest = hashlib.sha512(archive.read_bytes()).digest()
    monkeypatch.setattr(runtime, "SHA512", base64.b64encode(digest).decode())
    monkeypatch.setenv("ATNET_CACHE", str(tmp_path / "cache"))
    npm_that(tmp_path / "bin", f'cp {archive} "$4/onnxruntime-web-{runtime.VERSION}.tgz"', monkeypatch)
    made = runtime.find_runtime()
    assert {name: (made / name).read_bytes() for name in files} == files
    archive.unlink()
    assert runtime.find_runtime() == made


def test_only_the_archive_that_was_published_is_taken(tmp_path):
    (tmp_path / "other.tgz").write_bytes(b"other")
    with pytest.raises(ConfigError, match="other.tgz: not onnxruntime-web .* as it was published"):
        runtime.unpack(tmp_path / "other.tgz", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
