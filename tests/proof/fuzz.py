"""Feeds one reader with anything: fuzz.py decode|list|tar|classes MINUTES PHOTOS. Exit code 1 on the unexpected."""

import io
import resource
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from atnet.data.decode import decode
from atnet.data.lists import open_list
from atnet.data.shards import parse_class_list, scan
from atnet.errors import DataError

SECONDS = 5
ROUND = 500
LONG = "a/" * 50 + "c" * 30


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def spoilt(samples: list[bytes]) -> st.SearchStrategy[bytes]:
    """A sample with pieces changed, removed, doubled or cut off; or bytes of no sense."""
    edit = st.tuples(st.sampled_from(["change", "remove", "double", "cut"]), st.floats(0, 1), st.binary(max_size=8))

    def apply(sample: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
        for what, place, some in edits:
            at = int(place * len(sample))
            if what == "change":
                sample = sample[:at] + some + sample[at + len(some) :]
            elif what == "remove":
                sample = sample[:at] + sample[at + 1 + len(some) :]
            elif what == "double":
                sample = sample[:at] + sample[max(at - 40 * len(some), 0) : at] + sample[at:]
            else:
                sample = sample[: max(at, 1)]
        return sample

    return st.one_of(st.builds(apply, st.sampled_from(samples), st.lists(edit, max_size=6)), st.binary(max_size=200))


def pictures(photos: Path) -> list[bytes]:
    with Image.open(min((photos / "val").rglob("*.*"))) as opened:
        small = opened.convert("RGB").resize((48, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        encoded(small, "JPEG", exif=exif),
        encoded(small, "JPEG", progressive=True),
        encoded(small.convert("CMYK"), "JPEG"),
        encoded(small, "PNG"),
        encoded(small.quantize(16), "PNG", transparency=1),
        encoded(small.convert("LA"), "PNG"),
        encoded(small, "WEBP"),
        encoded(small.convert("P"), "GIF"),
        encoded(small, "BMP"),
        encoded(small, "TIFF", compression="tiff_lzw"),
        encoded(small.convert("1"), "TIFF", compression="group4"),
    ]


def lists() -> dict[str, list[bytes]]:
    table = pyarrow.table({"path": ["a.png", "b.png"], "label": ["x", "y"]})
    stream = io.BytesIO()
    pyarrow.parquet.write_table(table, stream)
    return {
        ".csv": [b'path,label,split\na.png,x,train\n"b,""c.png",y,val\n', "path,label\n\u00e9.png,\u00fc\n".encode()],
        ".json": [b'[{"path": "a.png", "label": "x"}, {"path": "b.png", "label": 3, "split": null}]'],
        ".jsonl": [b'{"path": "a.png", "label": "x"}\n{"path": "b.png", "label": "y"}\n'],
        ".parquet": [stream.getvalue()],
    }


def tars() -> list[bytes]:
    made = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
            for name, content in ((f"{LONG}.png", b"1"), (f"{LONG}.cls", b"0"), ("b.png", b"2"), ("b.json", b"{}")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        made.append(stream.getvalue())
    return made


def reader(name: str, photos: Path, folder: Path) -> tuple[st.SearchStrategy[object], Callable[[object], object]]:
    if name == "decode":
        return spoilt(pictures(photos)), lambda content: decode(content)  # type: ignore[arg-type]
    if name == "tar":
        return spoilt(tars()), lambda content: scan(io.BytesIO(content), "a.tar")  # type: ignore[arg-type]
    if name == "classes":
        samples = [b"one\ntwo\n", "\ufeffeins\r\nzwei".encode(), b"\x00\nb\n"]
        return spoilt(samples), lambda content: parse_class_list(content, "classes.txt")  # type: ignore[arg-type]
    samples_of = lists()
    strategy = st.sampled_from(sorted(samples_of)).flatmap(
        lambda suffix: st.tuples(st.just(suffix), spoilt(samples_of[suffix]))
    )

    def read(case: object) -> object:
        suffix, content = case  # type: ignore[misc]
        path = folder / f"list{suffix}"
        path.write_bytes(content)
        return open_list(path)

    return strategy, read


def main(name: str, minutes: float, photos: Path) -> None:
    examples = known = 0
    end = time.monotonic() + 60 * minutes

    def too_long(*_: object) -> None:
        raise AssertionError(f"{SECONDS} s were not enough")

    signal.signal(signal.SIGALRM, too_long)
    with tempfile.TemporaryDirectory() as folder:
        strategy, read = reader(name, photos, Path(folder))
        number = 0
        while time.monotonic() < end:

            @seed(number)
            @settings(max_examples=ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(strategy)
            def feed(case: object) -> None:
                nonlocal examples, known
                if time.monotonic() > end:
                    return
                examples += 1
                signal.alarm(SECONDS)
                try:
                    read(case)
                except DataError:
                    known += 1
                finally:
                    signal.alarm(0)

            feed()
            number += 1
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f"{examples:,} examples, {known:,} of them refused, at most {megabytes:.0f} MB")
    sys.exit(0 if megabytes < 1000 else 1)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
