"""`make proof-data`: damaged, odd and malicious images, copies between the parts, and readers fed with anything.

python data.py PHOTOS [NUMBER ...]: the points to prove, all of them if none is named. PHOTOS is a folder with train/
and val/. A line a point; exit code 1 if a point fails. FUZZ_MINUTES sets how long each reader is fed, 10 if not.
"""

import io
import json
import logging
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from atnet.config import make_config
from atnet.data.decode import decode
from atnet.data.lists import open_list
from atnet.data.loader import EvalSet, TrainSet, train_loader
from atnet.data.order import Draw
from atnet.data.preprocess import make_preprocess
from atnet.data.sources import open_parts
from atnet.errors import DataError
from atnet.eval.doctor import examine
from atnet.run.record import read_rows
from atnet.training.loop import train

GOOD, EACH = 5000, 50
Finding = tuple[bool, str]
POINTS: dict[int, tuple[str, Callable[[Path, Path], Finding]]] = {}


def point(number: int, claim: str) -> Callable[[Callable[[Path, Path], Finding]], Callable[[Path, Path], Finding]]:
    def register(function: Callable[[Path, Path], Finding]) -> Callable[[Path, Path], Finding]:
        POINTS[number] = (claim, function)
        return function

    return register


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def sixteen(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


GOOD_KINDS: dict[str, Callable[[Image.Image], tuple[bytes, str]]] = {
    "grey": lambda p: (encoded(p.convert("L"), "JPEG"), ".jpg"),
    "CMYK": lambda p: (encoded(p.convert("CMYK"), "JPEG"), ".jpg"),
    "progressive": lambda p: (encoded(p, "JPEG", progressive=True), ".jpg"),
    "PNG called JPEG": lambda p: (encoded(p, "PNG"), ".jpg"),
    "palette with transparency": lambda p: (encoded(p.quantize(64), "PNG", transparency=3), ".png"),
    "grey with alpha": lambda p: (encoded(p.convert("LA"), "PNG"), ".png"),
    "16 bits": lambda p: (encoded(sixteen(p), "PNG"), ".png"),
    "one bit": lambda p: (encoded(p.convert("1"), "PNG"), ".png"),
    "animated GIF": lambda p: (
        encoded(p.convert("P"), "GIF", save_all=True, append_images=[p.rotate(9).convert("P")]),
        ".gif",
    ),
    "WebP": lambda p: (encoded(p, "WEBP"), ".webp"),
    "TIFF, LZW": lambda p: (encoded(p, "TIFF", compression="tiff_lzw"), ".tif"),
    "turned by EXIF": lambda p: (encoded(p, "JPEG", exif=exif(6)), ".jpg"),
    "EXIF damaged": lambda p: (encoded(p, "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff" + b"\xff" * 40), ".jpg"),
    "bytes after its end": lambda p: (encoded(p, "JPEG") + b"\0" * 999, ".jpeg"),
}


def cut(content: bytes, share: float) -> bytes:
    return content[: int(len(content) * share)]


def with_wrong_sum(content: bytes) -> bytes:
    at = content.index(b"IDAT") + 40
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


BAD_KINDS: dict[str, tuple[Callable[[Image.Image], tuple[bytes, str]], str]] = {
    "empty": (lambda p: (b"", ".jpg"), "an empty file"),
    "JPEG cut in half": (lambda p: (cut(encoded(p, "JPEG"), 0.5), ".jpg"), "not a whole"),
    "JPEG cut in its head": (lambda p: (encoded(p, "JPEG")[:120], ".jpg"), "not a whole"),
    "PNG cut": (lambda p: (cut(encoded(p, "PNG"), 0.6), ".png"), "not a whole"),
    "PNG with a wrong sum": (lambda p: (with_wrong_sum(encoded(p, "PNG")), ".png"), "not a whole"),
    "HTML called JPEG": (lambda p: (b"<!DOCTYPE html><html>404 Not Found</html>", ".jpg"), "an HTML page"),
    "zeros": (lambda p: (bytes(4096), ".jpg"), "only zeros"),
    "HEIC called JPEG": (lambda p: (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), ".jpg"), "HEIC"),
    "sliver": (lambda p: (encoded(Image.new("L", (3, 900)), "PNG"), ".png"), "too unequal"),
    "floating point": (lambda p: (encoded(p.convert("F"), "TIFF"), ".tif"), "floating-point"),
}


@point(1, f"24 kinds of odd and damaged images, {EACH} each, among {GOOD:,} good ones: what becomes of each")
def odd_images(photos: Path, folder: Path) -> Finding:
    chance = random.Random(0)
    sources = chance.sample(sorted((photos / "train").rglob("*.*")), GOOD)
    expected: dict[str, str] = {}
    classes = sorted(path.name for path in (photos / "train").iterdir())
    for number, source in enumerate(sources):
        where = folder / "data" / "train" / classes[number % 10]
        where.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, where / f"good-{number:05}.jpg")
    number = 0
    makers = [(maker, "") for maker in GOOD_KINDS.values()] + list(BAD_KINDS.values())
    assert len(makers) == 24
    for kind, (maker, reason) in enumerate(makers):
        for _ in range(EACH):
            with Image.open(sources[number % GOOD]) as image:
                content, suffix = maker(image.convert("RGB").resize((96, 80)))
            name = f"{classes[number % 10]}/odd-{kind:02}-{number:05}{suffix}"
            (folder / "data" / "train" / name).write_bytes(content)
            expected[name] = reason
            number += 1
    shutil.copytree(photos / "val", folder / "data" / "val")
    bad = {name: reason for name, reason in expected.items() if reason}

    options = {
        "model": "xxxs+depths=2,1,11+attention_depths=0,1",
        "epochs": 1,
        "batch": 62,
        "data": {"source": str(folder / "data"), "size": 32, "max_bad": 0.2, "workers": 2},
    }
    run = train(**options, out=folder / "run")
    listed = {row["image"]: row["reason"] for row in read_rows(run.folder / "bad_files.csv")}
    outcomes = sum(bad[name] in listed.get(name, "") and name in listed[name] for name in bad if name in listed)
    trained, _ = open_parts(str(folder / "data"), 0.2)
    config = make_config(data={"size": 32})
    train_set, evaluation = TrainSet(trained, config), EvalSet(trained, make_preprocess(config.data))
    whole, lost = 0, 0
    for index, name in enumerate(trained.ids):
        _, label, hole = train_set[Draw(0, index)]
        pixels, seen, missing = evaluation[index]
        if name in bad:
            lost += label != -1 or seen != -1 or hole is None or missing is None
        else:
            own = make_preprocess(config.data)(decode(folder / "data" / "train" / name))
            same = label == seen == trained.labels[index] and bool(np.array_equal(pixels.numpy(), own))
            whole += same and name in expected
            lost += not same
    fine = set(listed) == set(bad) and outcomes == len(bad) and whole == len(expected) - len(bad) and not lost
    return fine, f"{outcomes + whole:,} of {len(expected):,} as declared; {lost} lost or replaced; {len(listed)} listed"


def png(width: int, height: int, chunks: bytes = b"", data: bytes = b"") -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    made = b"".join(chunk(name, content) for name, content in ([(chunks[:4], chunks[4:])] if chunks else []))
    return b"\x89PNG\r\n\x1a\n" + head + made + chunk(b"IDAT", data or zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def jpeg(width: int, height: int, scans: int = 0) -> bytes:
    small = encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=bool(scans))
    at = small.index(b"\xff\xc2" if scans else b"\xff\xc0") + 5
    made = small[:at] + struct.pack(">HH", height, width) + small[at + 4 :]
    return made[:-2] + made[made.rindex(b"\xff\xda") : -2] * scans + made[-2:] if scans else made


def bombs() -> dict[str, bytes]:
    image = encoded(Image.new("RGB", (40, 40)), "JPEG")
    deflated = zlib.compress(bytes(400_000_000), 9)
    tiff = encoded(Image.new("L", (9, 9)), "TIFF")
    gif = encoded(Image.new("P", (9, 9)), "GIF")
    bmp = encoded(Image.new("RGB", (9, 9)), "BMP")
    webp = b"RIFF" + struct.pack("<I", 40) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + b"\xff\x3f\0" * 2
    return {
        "PNG of 60,000 x 60,000": png(60_000, 60_000),
        "PNG of 2^31 x 2^31": png(2**31 - 1, 2**31 - 1),
        "PNG of 8,000 x 8,000, all of it there": png(8000, 8000, data=zlib.compress(bytes(192_008_000), 9)),
        "PNG, text of 400 MB": png(50, 50, b"zTXta\0\0" + deflated),
        "PNG, profile of 400 MB": png(50, 50, b"iCCPa\0\0" + deflated),
        "PNG, long and thin": png(40_000_000, 1),
        "PNG, pixels of another image": png(7000, 7000, data=deflated[:9000]),
        "JPEG of 65,500 x 65,500": jpeg(65_500, 65_500),
        "JPEG of 500 scans": jpeg(6000, 6000, 500),
        "GIF of 65,535 x 65,535": gif[:6] + b"\xff\xff\xff\xff" + gif[10:],
        "BMP of 50,000 x 50,000": bmp[:18] + struct.pack("<ii", 50_000, 50_000) + bmp[26:],
        "BMP of -2^31 rows": bmp[:18] + struct.pack("<ii", 50_000, -(2**31)) + bmp[26:],
        "TIFF of 90,000 x 90,000": tiff.replace(
            b"\0\x01\x04\0\x01\0\0\0\x09\0\0\0", b"\0\x01\x04\0\x01\0\0\0\x90_\x01\0"
        ),
        "TIFF, directory that is its own next": tiff[:4] + struct.pack("<I", 8) + b"\0\0" + struct.pack("<I", 8) * 40,
        "TIFF, a tag of 4 GB": b"II*\0\x08\0\0\0\x01\0\x00\x01\x04\0\xff\xff\xff\x3f\x08\0\0\0\0\0\0\0",
        "WebP of 16,384 x 16,384": webp,
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n",
        "EPS in a DOS binary": b"\xc5\xd0\xd3\xc6" + bytes(28) + b"%!PS-Adobe\n",
        "PDF and JPEG in one": b"%PDF-1.4\n" + image,
        "ZIP and JPEG in one": b"PK\x03\x04" + bytes(26) + image,
        "HTML and GIF in one": b"<html><script>/*" + gif + b"*/alert(1)</script>",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "XPM": b'/* XPM */\nstatic char *a[] = {"9999 9999 1 1", "a c #fff"};',
        "PPM of 60,000 x 60,000": b"P6 60000 60000 255\n",
        "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99),
        "icon with 65,535 entries": b"\0\0\x01\0\xff\xff" + bytes(999),
        "Photoshop file": b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3),
        "pickle": b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.",
        "ELF": b"\x7fELF" + bytes(200),
        "FITS": b"SIMPLE  =                    T" + b" " * 2850,
    }


CHILD = """
import json, resource, sys, time
from atnet.data.decode import decode
from atnet.errors import DataError
from PIL import Image
Image.preinit()
decode(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
try:
    decode(sys.argv[2])
    said = ""
except DataError as error:
    said = str(error)
seconds = time.perf_counter() - began
print(json.dumps([said, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000]))
"""


@point(2, "30 bombs and files that are two things: each refused in under 1 s and 200 MB")
def refused(photos: Path, folder: Path) -> Finding:
    sound = min((photos / "val").rglob("*.*"))
    good, slowest, largest, failures = 0, 0.0, 0.0, []
    made = bombs()
    for name, content in made.items():
        path = folder / "bomb.jpg"
        path.write_bytes(content)
        done = subprocess.run([sys.executable, "-c", CHILD, str(sound), str(path)], capture_output=True, text=True)
        if done.returncode:
            failures.append(f"{name}: {done.stderr[-200:]}")
            continue
        said, seconds, megabytes = json.loads(done.stdout)
        slowest, largest = max(slowest, seconds), max(largest, megabytes)
        if said and seconds < 1 and megabytes < 200:
            good += 1
        else:
            failures.append(f"{name}: {said or 'taken'}, {seconds:.2f} s, {megabytes:.0f} MB")
    return good == len(made) == 30, f"{good} of 30, at most {slowest:.2f} s and {largest:.0f} MB {'; '.join(failures)}"


@point(3, "eight orientations, 16 bits, CMYK, grey with alpha, palette, profile: equal pixels on all paths")
def equal_pixels(photos: Path, folder: Path) -> Finding:
    with Image.open(min((photos / "val").rglob("*.*"))) as opened:
        image = opened.convert("RGB")
    upright = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
    grey = np.repeat(np.asarray(image.convert("L"))[..., None], 3, 2)
    cases: list[tuple[str, bytes, np.ndarray]] = []
    for flag, turn in upright.items():
        seen = image if turn is None else image.transpose(Image.Transpose(turn))
        cases.append((f"orientation {flag}", encoded(image, "PNG", exif=exif(flag)), np.asarray(seen)))
    cmyk = image.convert("CMYK")
    cases += [
        ("16 bits", encoded(sixteen(image), "PNG"), grey),
        ("CMYK", encoded(cmyk, "TIFF"), np.asarray(cmyk.convert("RGB"))),
        ("grey with alpha", encoded(image.convert("LA"), "PNG"), grey),
        ("palette", encoded(image.quantize(256), "PNG"), np.asarray(image.quantize(256).convert("RGB"))),
        ("profile", encoded(image, "PNG", icc_profile=wide_profile()), in_srgb(image)),
    ]
    root = folder / "equal"
    for i, (_, content, _) in enumerate(cases):
        for part in ("train", "val"):
            (root / part / f"c{i:02}").mkdir(parents=True, exist_ok=True)
            (root / part / f"c{i:02}" / "a.png").write_bytes(content)
    trained, validated = open_parts(str(root), 0.2)
    config = make_config(data={"source": str(root), "size": 128}, augment={"crop_scale": 1.0, "flip": 0.0})
    preprocess = make_preprocess(config.data)
    train_set, evaluation = TrainSet(trained, config), EvalSet(validated, preprocess)
    worst, wrong = 0.0, []
    for i, (name, content, pixels) in enumerate(cases):
        expected = preprocess.resize_and_crop(Image.fromarray(pixels)).astype(float)
        paths = {
            "training": train_set[Draw(0, i)][0].permute(1, 2, 0).numpy(),
            "evaluation": colours(evaluation[i][0].numpy(), preprocess),
            "prediction": colours(preprocess(decode(root / "val" / f"c{i:02}" / "a.png")), preprocess),
            "Python": preprocess.resize_and_crop(decode(content)),
        }
        for path, found in paths.items():
            apart = float(np.abs(found - expected).max())
            worst = max(worst, apart)
            # Of the profile, the library's rounding against our arithmetic.
            if apart > (2.01 if name == "profile" else 1.01):
                wrong.append(f"{name} in {path} by {apart:.1f}")
    return not wrong, f"{len(cases)} kinds x 4 paths, at most {worst:.2f} of 255 apart {'; '.join(wrong)}"


def colours(image: np.ndarray, preprocess: object) -> np.ndarray:
    """A normalised image's colours, 0 to 255, (H, W, 3)."""
    mean, std = (np.array(getattr(preprocess, what))[:, None, None] for what in ("mean", "std"))
    return (255 * (image * std + mean)).transpose(1, 2, 0)


def wide_profile() -> bytes:
    """Adobe RGB's colours, as a matrix profile made from its primaries (Adobe RGB (1998) Color Image Encoding)."""
    from_primaries = {  # adapted to D50
        b"rXYZ": (0.60974, 0.31111, 0.01947),
        b"gXYZ": (0.20528, 0.62567, 0.06087),
        b"bXYZ": (0.14919, 0.06322, 0.74457),
        b"wtpt": (0.95045, 1.0, 1.08905),
    }

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    tags = {name: b"XYZ \0\0\0\0" + b"".join(map(fixed, xyz)) for name, xyz in from_primaries.items()}
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.19921875 * 256)) + b"\0\0"
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    words = b"Wide"
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", len(words) + 1) + words + b"\0" + bytes(78)
    tags[b"cprt"] = b"text\0\0\0\0none\0"
    place, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", place + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", place + len(body), b"none", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(0.9642) + fixed(1.0) + fixed(0.8249)
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body


def in_srgb(image: Image.Image) -> np.ndarray:
    """The Adobe RGB image in sRGB, by arithmetic: to XYZ, and to sRGB's primaries and curve."""
    light = (np.asarray(image) / 255) ** 2.19921875
    to_xyz = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
    from_srgb = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
    linear = np.clip(light @ (np.linalg.inv(from_srgb) @ to_xyz).T, 0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (255 * curved).round().astype(np.uint8)


@point(4, "200 exact and 200 re-encoded copies of training photos in validation; false alarms on the photos themselves")
def copies(photos: Path, folder: Path) -> Finding:
    before = examine(str(photos))
    kinds = {finding.what: finding.pairs for finding in before.findings if finding.pairs}
    own = {pair for pairs in kinds.values() for pair in pairs}
    images = sum(map(len, before.parts.values()))
    root = folder / "copies"
    for part in ("train", "val"):
        shutil.copytree(photos / part, root / part, symlinks=True)
    chance = random.Random(1)
    planted: dict[str, str] = {}
    for number, source in enumerate(chance.sample(sorted((root / "train").rglob("*.*")), 400)):
        name = root / "val" / source.parent.name / f"planted-{number:03}.jpg"
        if number < 200:
            shutil.copy(source, name)
        else:
            with Image.open(source) as image:
                scale = chance.uniform(0.5, 1.3)
                size = (round(image.width * scale), round(image.height * scale))
                name.write_bytes(encoded(image.convert("RGB").resize(size), "JPEG", quality=chance.randint(30, 95)))
        planted[str(name)] = str(source)
    after = examine(str(root))
    found: dict[str, set[str]] = {"same": set(), "nearly": set()}
    for finding in after.findings:
        for line in finding.examples if finding.pairs else ():
            one, other = line.split("  =  ")
            if planted.get(other) == one:
                found["nearly" if "nearly" in finding.what else "same"].add(other)
    exact = sum(int(Path(name).stem.split("-")[1]) < 200 for name in found["same"])
    near = sum(int(Path(name).stem.split("-")[1]) >= 200 for name in found["nearly"])
    share = len({place for pair in own for place in (pair[:2], pair[2:])}) / images
    fine = exact == 200 and near >= 190 and share <= 0.01
    listed = "; ".join(f"{what}" for what in kinds)
    return fine, f"{exact} of 200 exact, {near} of 200 re-encoded; of the photos {share:.2%} are in a pair ({listed})"


@point(5, "ten minutes of anything for each reader: no unexpected exception, no hang of 5 s, under 1 GB")
def fed_with_anything(photos: Path, folder: Path) -> Finding:
    minutes = float(os.environ.get("FUZZ_MINUTES", "10"))
    script = str(Path(__file__).with_name("fuzz.py"))
    results = []
    for reader in ("decode", "list", "tar", "classes"):
        done = subprocess.run(
            [sys.executable, script, reader, str(minutes), str(photos)], cwd=folder, capture_output=True, text=True
        )
        results.append((done.returncode == 0, f"{reader}: {(done.stdout or done.stderr).strip()[-300:]}"))
    return all(fine for fine, _ in results), "; ".join(said for _, said in results)


@point(6, "a list of 1.3 million files opens in under 3 s; loader processes take no more memory from epoch to epoch")
def long_lists(photos: Path, folder: Path) -> Finding:
    path = folder / "list.csv"
    rows = (f"train/n{i // 1300:08}/n{i // 1300:08}_{i:07}.JPEG,n{i // 1300:08}" for i in range(1_300_000))
    path.write_text("path,label\n" + "\n".join(rows))
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        images = open_list(path)[""]
        seconds.append(time.perf_counter() - began)
    assert len(images) == 1_300_000
    classes = sorted(path.name for path in (photos / "val").iterdir())
    names = [
        f"{photos}/val/{name}/{file.name}" for name in classes for file in sorted((photos / "val" / name).iterdir())
    ]
    listed = [f"{names[i % len(names)]},{classes[i % 10]}" for i in range(1_300_000)]
    path.write_text("path,label\n" + "\n".join(listed))
    images = open_list(path)[""]
    config = make_config(batch=64, data={"size": 64, "workers": 2})
    used = []
    for number, _ in enumerate(train_loader(images, config, 0, 241)):
        if number % 60 == 0 and number:
            children = psutil.Process().children(recursive=True)
            used.append(sum(child.memory_full_info().uss for child in children) / 1e6)
    growth = used[-1] - used[0]
    fine = min(seconds) < 3 and growth < 8
    said = ", ".join(f"{megabytes:.0f}" for megabytes in used)
    return fine, f"opened in {min(seconds):.2f} s; two processes' own memory every 3,840 images: {said} MB"


def main(photos: Path, numbers: list[int]) -> None:
    rows = []
    logging.getLogger("atnet").setLevel(logging.CRITICAL)
    for number in numbers or sorted(POINTS):
        claim, prove = POINTS[number]
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as name:
            os.chdir(name)
            try:
                fine, found = prove(photos, Path(name))
            except DataError as error:
                fine, found = False, str(error)
            os.chdir("/")
        rows.append(fine)
        seconds = time.monotonic() - began
        print(f"| {number} | {claim} | {found} | {'yes' if fine else 'NO'} | {seconds:.0f} s |", flush=True)
    sys.exit(0 if all(rows) else 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), [int(word) for word in sys.argv[2:]])
