"""`make proof-fuzz`: every reader fed with valid files and requests that were spoilt, by format and byte by byte.

fuzz.py all MINUTES PHOTOS [--seed N]: all kinds, each at least its number of tries, on two cores, in rounds until the
minutes are over; a table, build/fuzz.json, and the inputs that were found in build/fuzz/.
fuzz.py KIND MINUTES PHOTOS [--seed N]: one kind for so long.  fuzz.py KIND --seed N --tries N: so many tries; with
--only I the one of that number. A try is a function of (kind, seed, number).
A finding is a crash, any exception but an AtnetError (of a command: a traceback, or an exit code that is none of its
own), a hang, too much memory, NaN in JSON, or a file changed that is not the reader's. Exit code 1 if there is one.
"""

import argparse
import contextlib
import copy
import csv
import hashlib
import io
import itertools
import json
import logging
import math
import os
import pickletools
import random
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import psutil
import pyarrow
import pyarrow.parquet
import yaml
from PIL import Image, ImageCms

from atnet.errors import AtnetError

HERE = Path(__file__).parent
RECIPES = HERE.parent.parent / "recipes"
MEGABYTES, ADDRESS_SPACE = 1500, 12_000_000_000
MODEL = "xxxs+dims=16,32,32+heads=2+depths=1,1,1"
HARM = "\x1b]0;harm\x07<img src=x onerror=alert(1)>../../etc\u202e"


class Try(NamedTuple):
    """name: of the input, by which its format is told.  read: what is tried; raises an AtnetError if it refuses."""

    name: str
    content: bytes
    read: Callable[[], object]


Make = Callable[[random.Random], Try]
"""A try by its own generator. It runs in a folder of its own, where it may write."""


@dataclass(frozen=True)
class Kind:
    setup: Callable[[Path], Make]
    tries: int = 20_000
    seconds: int = 10


class TooLongError(BaseException):
    """No Exception, so that nothing takes it for one of its own."""


# Spoiling: bytes, values, and each format in its own terms.


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


ODD: list[Any] = [
    None, True, False, "", " ", "x" * 3000, HARM, "\0", "\ud800", "=1+1", "1e999", "nan", "01", "٣", "/dev/zero", ".",
    "../bait", "-1", -1, 0, 1, 2, 255, 2**31, 2**53 + 1, 2**63, -(2**64), 10**400, 0.5, -0.0, 1e-320, 1e308, math.nan,
    math.inf, -math.inf, [], {}, [[]], [None], {"": None}, {"last": math.nan}, nested(200), ["x"] * 2000, [1e308] * 9,
]  # fmt: skip


def spoilt(rng: random.Random, content: bytes) -> bytes:
    """Bytes changed, removed, doubled or cut off, the beginning and the end more often than the middle."""
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        size = len(made)
        place = rng.choice((rng.random(), rng.random() ** 4, 1 - rng.random() ** 4))
        at = min(int(place * size), max(size - 1, 0))
        what = rng.choice(("flip", "byte", "number", "some", "remove", "double", "cut"))
        if what == "flip" and size:
            made[at] ^= 1 << rng.randrange(8)
        elif what == "byte" and size:
            made[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif what == "number":
            number = rng.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**32)))
            made[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
        elif what == "some":
            made[at : at + 8] = rng.randbytes(rng.randrange(9))
        elif what == "remove":
            del made[at : at + rng.choice((1, 2, 4, 16, 512))]
        elif what == "double":
            made[at:at] = made[max(at - rng.choice((1, 8, 64, 512)), 0) : at]
        elif rng.random() < 0.3:
            del made[max(at, 1) :]
    return bytes(made)


def altered(rng: random.Random, value: Any, edits: int = 0) -> Any:
    """A value of lists and mappings with a few places replaced, removed, doubled, renamed or exchanged."""
    holder = [copy.deepcopy(value)]
    for _ in range(edits or rng.choice((1, 1, 1, 2, 4))):
        slots = list(_slots(holder))
        into, key = rng.choice(slots)
        what = rng.choice(("odd", "odd", "odd", "remove", "double", "name", "swap", "near"))
        if what == "odd" or into is holder:
            into[key] = copy.deepcopy(rng.choice(ODD))
        elif what == "remove":
            del into[key]
        elif what == "double" and isinstance(into, list):
            into[key:key] = [into[key]] * rng.choice((1, 100))
        elif what == "name" and isinstance(into, dict):
            into[rng.choice(("", HARM, "x", f"{key}s"))] = into.pop(key)
        elif what == "swap":
            other, place = rng.choice(slots[1:])
            with contextlib.suppress(IndexError, KeyError):
                into[key] = copy.deepcopy(other[place])
        elif isinstance(into[key], str):
            into[key] = spoilt(rng, into[key].encode(errors="replace")).decode(errors="replace")
        elif isinstance(into[key], int | float):
            into[key] *= rng.choice((-1, 0, 1.5, 2, 1000))
    return holder[0]


def _slots(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(part, dict | list) and len(part) < 3000:
            yield from _slots(part)


def of_json(rng: random.Random, content: bytes) -> bytes:
    return json.dumps(altered(rng, json.loads(content))).encode()


def of_lines(rng: random.Random, content: bytes) -> bytes:
    rows = altered(rng, [json.loads(line) for line in content.splitlines()])
    return "\n".join(map(json.dumps, rows if isinstance(rows, list) else [rows])).encode()


def of_yaml(rng: random.Random, content: bytes) -> bytes:
    hostile = (
        "a: &a [1]\nb: *a\n", "!!python/object/apply:os.system [touch ../bait]", "[" * 3000, "{" * 3000, "? [a]\n: 1\n",
        "<<: {epochs: 1}\n", "x: " + "9" * 5000, "x: !!set {a}\n", "x: !!binary 9\n", "x: 0o8\n", "x: 2001-02-30\n",
        "x: 1:60:60\n", "---\n---\n", "%YAML 9.9\n---\n", "\ufeffx: 1\n", "x: \x85", "epochs: 1\nepochs: 2\n",
        "x: !!timestamp 1\n", "x: !!float _\n", "x: !!int _\n", "x: !!bool x\n", "- " * 2000, "!!omap [a]",
        "data:\n  7: 8\n",
        "x: 0b\n", "x: !!int 0x\n", "x: !!int ''\n", "x: !!merge 1\n", "= : =\n", "x: |99\n a\n", '"\\uD800": 1\n',
    )  # fmt: skip
    if rng.random() < 0.1:
        some = rng.choice(hostile).encode(errors="replace")
        return rng.choice((some, content + some, some + content))
    return yaml.safe_dump(altered(rng, yaml.safe_load(content)), sort_keys=False).encode(errors="surrogatepass")


def of_csv(rng: random.Random, content: bytes) -> bytes:
    rows = altered(rng, list(csv.reader(io.StringIO(content.decode()))))
    text = io.StringIO()
    written = csv.writer(text, escapechar="\\")
    for row in rows if isinstance(rows, list) else []:
        written.writerow([str(cell)[:5000] for cell in row] if isinstance(row, list) else [str(row)[:5000]])
    return text.getvalue().encode(errors="surrogatepass")


def of_safetensors(rng: random.Random, content: bytes) -> bytes:
    length = struct.unpack("<Q", content[:8])[0]
    head, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    part = rng.random()
    if part < 0.4:
        said = json.loads(head["__metadata__"]["atnet"])
        head["__metadata__"]["atnet"] = json.dumps(altered(rng, said))
    elif part < 0.8:
        head = altered(rng, head)
    else:
        at = rng.randrange(len(rest) // 4) * 4
        number = struct.pack("<f", rng.choice((math.nan, math.inf, 3e38, 1e-44)))
        rest = rest[:at] + number + rest[at + 4 :]
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + rest


def of_checkpoint(rng: random.Random, content: bytes) -> bytes:
    """Its zip archive, or the pickle inside; seldom the mapping, saved anew."""
    import torch

    if rng.random() < 0.2:
        state = altered(rng, torch.load(io.BytesIO(content), weights_only=True))
        stream = io.BytesIO()
        torch.save(state, stream)
        return stream.getvalue()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = [(one.filename, archive.read(one)) for one in archive.infolist()]
    place = next(i for i, (name, _) in enumerate(parts) if name.endswith("data.pkl"))
    if rng.random() < 0.7:
        parts[place] = parts[place][0], _of_pickle(rng, parts[place][1])
    else:
        what, i = rng.choice(("remove", "double", "name", "spoil")), rng.randrange(len(parts))
        name, data = parts[i]
        new = {"remove": [], "double": [(name, data)] * 2, "name": [(HARM, data)], "spoil": [(name, spoilt(rng, data))]}
        parts[i : i + 1] = new[what]
    stream = io.BytesIO()
    packing = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", packing) as archive:
        for name, data in parts:
            archive.writestr(name, data)
    return stream.getvalue()


def _of_pickle(rng: random.Random, content: bytes) -> bytes:
    operations = [at for _, _, at in pickletools.genops(content)] + [len(content)]
    pieces = [content[a:b] for a, b in itertools.pairwise(operations)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        i = rng.randrange(len(pieces))
        what = rng.choice(("remove", "double", "move", "insert", "argument", "argument"))
        if what == "remove" and len(pieces) > 1:
            del pieces[i]
        elif what == "double":
            pieces.insert(i, pieces[i])
        elif what == "move":
            pieces.insert(i, rng.choice(pieces))
        elif what == "insert":
            some = (b"cos\nsystem\n", b"N", b"0", b"(", b"t", b"l", b"d", b"]", b"}", b"R", b"\x85", b"a", b"s", b"u",
            b"b",
                    b"G\x7f\xf8\0\0\0\0\0\0", b"\x8a\xff" + bytes(255), b"J\xff\xff\xff\xff", b"ctorch\nzeros\n", b"Q",
                    b"j\xff\xff\xff\x7f", b"ctorch._utils\n_rebuild_tensor_v2\n")  # fmt: skip
            pieces.insert(i, rng.choice(some))
        elif len(pieces[i]) > 1:
            pieces[i] = pieces[i][:1] + spoilt(rng, pieces[i][1:])
    return b"".join(pieces)


def of_onnx(rng: random.Random, content: bytes) -> bytes:
    from atnet.exported.untrusted import _OPERATIONS

    model = onnx.load_model_from_string(content)
    graph, numbers = model.graph, (0, 1, -1, 2, 3, 7, 255, 65536, 2**31 - 1, 2**31, -(2**31), 2**62, -(2**63))
    for _ in range(rng.choice((1, 1, 2, 3))):
        node = rng.choice(graph.node)
        what = rng.choice(
            ("type", "wire", "attribute", "attribute", "attribute", "tensor", "tensor", "tensor", "graph")
        )
        if what == "type":
            node.op_type = rng.choice((*sorted(_OPERATIONS), "Loop", "If", "Scan", "NonZero", HARM, ""))
        elif what == "wire" and node.input:
            names = [name for one in graph.node for name in (*one.input, *one.output)]
            change = rng.choice(("replace", "remove", "add", "output"))
            if change == "replace":
                node.input[rng.randrange(len(node.input))] = rng.choice((*names, "", "nothing"))
            elif change == "remove":
                del node.input[-1]
            else:
                (node.input if change == "add" else node.output).append(rng.choice((*names, "new", "")))
        elif what == "attribute":
            with_some = [one for one in graph.node if one.attribute] or [node]
            attribute = rng.choice(rng.choice(with_some).attribute or [onnx.helper.make_attribute("x", 1)])
            if attribute.ints and rng.random() < 0.9:
                attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(numbers)
                if rng.random() < 0.2:
                    attribute.ints.extend([rng.choice(numbers)] * rng.choice((1, 5)))
            elif rng.random() < 0.8:
                attribute.i, attribute.f = rng.choice(numbers), rng.choice((math.nan, math.inf, 0.0, -1.0, 1e38))
                attribute.s = rng.choice((b"", b"SAME_UPPER", b"linear", b"\xff", b"constant", attribute.s))
            else:
                attribute.name = rng.choice(("axis", "group", "perm", "keepdims", "x" * 500))
        elif what == "tensor" and graph.initializer:
            whole = [one for one in graph.initializer if one.data_type in (6, 7)]
            tensor = rng.choice(whole if whole and rng.random() < 0.6 else graph.initializer)
            change = rng.random()
            if change < 0.5:
                raw = np.array(onnx.numpy_helper.to_array(tensor)).reshape(-1)
                if raw.size:
                    fits = numbers if raw.dtype.kind in "iu" else (math.nan, math.inf, 3e38, 0.0)
                    with np.errstate(all="ignore"):
                        raw[rng.randrange(raw.size)] = np.array(rng.choice(fits)).astype(raw.dtype)
                dims, name = list(tensor.dims), tensor.name
                tensor.CopyFrom(onnx.numpy_helper.from_array(raw.reshape(dims), name))
            elif change < 0.8 and tensor.dims:
                tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(numbers)
            elif change < 0.9:
                tensor.data_type = rng.randrange(25)
            else:
                tensor.data_location = 1
                entry = tensor.external_data.add()
                entry.key, entry.value = "location", "../bait"
        else:
            change = rng.randrange(8)
            if change == 0:
                model.opset_import[0].version = rng.choice((0, 1, 13, 19, 21, 2**40))
            elif change == 1:
                one = next(one for one in model.metadata_props if one.key == "atnet")
                one.value = json.dumps(altered(rng, json.loads(one.value)))
            elif change == 2:
                shape = graph.input[0].type.tensor_type.shape
                shape.dim[rng.randrange(len(shape.dim) or 1) if shape.dim else 0].dim_value = rng.choice(numbers)
            elif change == 3:
                model.functions.add().name = "f"
            elif change == 4:
                graph.output[0].name = rng.choice([*node.output, "logits", ""])
            elif change == 5:
                graph.node.add().CopyFrom(node)
            elif change == 6:
                graph.sparse_initializer.add()
            else:
                graph.input[0].type.tensor_type.elem_type = rng.randrange(20)
    return model.SerializeToString()


def of_png(rng: random.Random, content: bytes) -> bytes:
    """Its chunks, their check sums made good again."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        size = struct.unpack(">I", content[at : at + 4])[0]
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    i = rng.randrange(len(chunks))
    kind, data = chunks[i]
    what = rng.choice(("data", "data", "data", "remove", "double", "kind", "order", "insert"))
    if what == "data" and kind == b"IDAT" and rng.random() < 0.5:
        with contextlib.suppress(zlib.error):
            data = zlib.compress(spoilt(rng, zlib.decompress(data)))
        chunks[i] = kind, data
    elif what == "data":
        chunks[i] = kind, spoilt(rng, data)
    elif what == "remove":
        del chunks[i]
    elif what == "double":
        chunks.insert(i, chunks[i])
    elif what == "order":
        rng.shuffle(chunks)
    else:
        kinds = (
            b"acTL",
            b"fcTL",
            b"fdAT",
            b"tRNS",
            b"PLTE",
            b"iCCP",
            b"gAMA",
            b"cHRM",
            b"sBIT",
            b"eXIf",
            b"zTXt",
            b"iTXt",
        )
        one = (
            rng.choice(kinds),
            rng.choice((data, rng.randbytes(rng.randrange(40)), b"x\0\0" + zlib.compress(bytes(10**7)))),
        )
        chunks[i : i + (what == "kind")] = [one]
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def of_tar(rng: random.Random, content: bytes) -> bytes:
    """A header's field, its check sum made good again."""
    made = bytearray(content)
    heads = [at for at in range(0, len(made) - 512, 512) if made[at + 257 : at + 262] == b"ustar"]
    for at in rng.sample(heads, min(len(heads), rng.choice((1, 1, 2)))):
        place, size = rng.choice(
            ((0, 100), (100, 8), (124, 12), (124, 12), (136, 12), (156, 1), (157, 100), (345, 155))
        )
        some = rng.choice((
            b"\xff" * size, b"\x80" + bytes(max(size - 2, 0)) + b"\x01", b"7" * size, b"-1", bytes(size),
            b"../../bait\0",
            bytes([rng.choice(b"01234567xgLKSVDN")]), spoilt(rng, bytes(made[at + place : at + place + size])),
        ))[:size]  # fmt: skip
        made[at + place : at + place + len(some)] = some
        made[at + 148 : at + 156] = b" " * 8
        made[at + 148 : at + 156] = b"%06o\0 " % sum(made[at : at + 512])
    return bytes(made)


def of_parquet(rng: random.Random, content: bytes) -> bytes:
    """A column of another type or name, odd values, or other metadata."""
    table = pyarrow.parquet.read_table(io.BytesIO(content))
    names, columns = list(table.column_names), [table[name].to_pylist() for name in table.column_names]
    noted = dict(table.schema.metadata or {})
    i, rows = rng.randrange(len(names)), len(table)
    kinds: tuple[Any, ...] = (
        [None], [""], ["x"], [HARM], [-1], [0], [2**62], [-(2**63)], [math.nan], [1e308], [b""], [b"\xff"], [True],
        [[1]], [{"bytes": None, "path": "x"}], [{"bytes": b"x"}], [[["x"]]],
    )  # fmt: skip
    what = rng.choice(("values", "values", "value", "drop", "name", "double", "metadata", "rows"))
    arrays = [pyarrow.array(column) for column in columns]
    with contextlib.suppress(pyarrow.ArrowException, OverflowError):
        if what == "values":
            arrays[i] = pyarrow.array(rng.choice(kinds) * rows)
        elif what == "value":
            columns[i][rng.randrange(rows)] = rng.choice(rng.choice(kinds))
            arrays[i] = pyarrow.array(columns[i])
    if what == "drop" and len(names) > 1:
        del arrays[i], names[i]
    elif what == "name":
        names[i] = rng.choice(("", HARM, "label", "path", "split", "LABEL ", "id", names[0]))
    elif what == "double":
        arrays.append(arrays[i])
        names.append(rng.choice((names[i], names[i].upper(), "class")))
    elif what == "rows":
        arrays = [array.slice(0, rng.choice((0, 1))) for array in arrays]
    elif what == "metadata":
        known = noted.get(b"huggingface", b'{"info": {"features": {"label": {"names": ["a", "b"]}}}}')
        noted[b"huggingface"] = rng.choice((of_json, spoilt))(rng, known)
    stream = io.BytesIO()
    schema = pyarrow.schema([(n, a.type) for n, a in zip(names, arrays, strict=True)], metadata=noted)
    packing = rng.choice(("none", "snappy", "zstd", "gzip"))
    table = pyarrow.Table.from_arrays(arrays, schema=schema)
    pyarrow.parquet.write_table(table, stream, compression=packing, use_dictionary=rng.random() < 0.5)
    return stream.getvalue()


FORMATS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    ".json": of_json, ".jsonl": of_lines, ".yaml": of_yaml, ".csv": of_csv, ".safetensors": of_safetensors,
    ".pt": of_checkpoint, ".onnx": of_onnx, ".png": of_png, ".tar": of_tar, ".parquet": of_parquet,
}  # fmt: skip


def damaged(rng: random.Random, name: str, content: bytes) -> bytes:
    """A valid file's content, no longer quite valid."""
    by_format = FORMATS.get(Path(name).suffix)
    if by_format is not None and rng.random() < 0.7:
        with contextlib.suppress(Exception):  # of a second edit that does not take what the first one made
            return by_format(rng, content)
    return spoilt(rng, content)


# Valid examples.


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def prepare(place: Path, photos: Path | None) -> None:
    """Writes a data set, a run that is finished and one that is not, networks, lists, shards and tables."""
    import atnet
    from atnet.data.sources import open_parts
    from atnet.export.export import export
    from atnet.study.study import read_study, run_study
    from atnet.training.faults import FOLDER

    os.chdir(place)
    for part, samples in zip(("train", "val"), open_parts("digits", 0.2), strict=True):
        for i in range(0, len(samples), 20 if part == "train" else 14):
            file = Path("data", part, f"d{samples.labels[i]}", f"{i}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            samples.read(i).resize((24, 24)).save(file)
    photo = Path("photo.png")
    found = min((photos / "val").rglob("*.*")) if photos else next(Path("data", "val").rglob("*.png"))
    with Image.open(found) as opened:
        opened.convert("RGB").resize((48, 40)).save(photo)
    data = {"source": "data", "size": 32, "crop_pct": 1.0, "workers": 0}
    options: dict[str, Any] = {"model": MODEL, "batch": 20, "data": data, "threads": 1}
    folder = atnet.train(**options, epochs=2, out="run").folder
    Path("recipe.yaml").write_text(yaml.safe_dump(options | {"epochs": 1}))
    (folder / FOLDER).mkdir()
    shutil.copy(folder / "last.safetensors", folder / FOLDER / "step-3.safetensors")
    (folder / FOLDER / "faults.csv").write_text("step,epoch,seed,fault,images\n3,1,0,the loss is nan,1 2 3\n")
    shutil.copytree(folder, "other")
    shutil.copytree(folder, "unfinished")
    for name in ("record.json", "predictions.csv"):
        Path("unfinished", name).unlink()
    sorted(Path("unfinished", "checkpoints").glob("*.pt"))[-1].unlink()
    shutil.rmtree("runs", ignore_errors=True)
    export(folder, "net.onnx")
    export(folder, "whole.onnx", preprocessing=True)
    study = {"recipe": "recipe.yaml", "seeds": [0], "variants": {"one": {}, "two": {"drop_path": 0.1}}}
    Path("study.yaml").write_text(yaml.safe_dump(study))
    list(run_study(read_study(Path("study.yaml")), Path("study")))
    subprocess.run([sys.executable, "-m", "atnet", "pack", "data", "shards", "--size", "24"], check=True)
    files = sorted(Path("data", "train").rglob("*.png"))[::2]
    rows = [
        {"path": str(file), "label": file.parent.name, "split": ("train", "val")[i % 2]} for i, file in enumerate(files)
    ]
    Path("list.csv").write_text("path,label,split\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    Path("list.json").write_text(json.dumps(rows))
    Path("list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "list.parquet")
    features = json.dumps({"info": {"features": {"label": {"names": [f"d{i}" for i in range(10)]}}}})
    images = [
        {"image": {"bytes": file.read_bytes(), "path": None}, "label": int(file.parent.name[1:])} for file in files
    ]
    table = pyarrow.Table.from_pylist(images).replace_schema_metadata({b"huggingface": features.encode()})
    pyarrow.parquet.write_table(table, "images.parquet")
    Path("classes.txt").write_text("".join(f"d{i}\n" for i in range(10)))
    Path("README.md").write_text("<!-- table: begin, made by `make table` -->\n<!-- table: end -->\n")


# The kinds.


def weights(place: Path) -> Make:
    from atnet.models.load import load

    sound = (place / "run" / "last.safetensors").read_bytes()

    def make(rng: random.Random) -> Try:
        content = damaged(rng, "w.safetensors", sound)

        def read() -> None:
            Path("w.safetensors").write_bytes(content)
            load("w.safetensors")[1].to_metadata()

        return Try("w.safetensors", content, read)

    return make


def checkpoints(place: Path) -> Make:
    from atnet.run.record import open_run
    from atnet.training.checkpoint import load_checkpoint, read_checkpoint
    from atnet.training.state import State

    sound = sorted((place / "run" / "checkpoints").glob("*.pt"))[-1].read_bytes()
    os.chdir(place)
    state = State(open_run(Path("run")))
    os.chdir(ARENA / "work")

    def make(rng: random.Random) -> Try:
        content = damaged(rng, "c.pt", sound)
        whole = rng.random() < 0.2

        def read() -> None:
            shutil.rmtree("run", ignore_errors=True)
            digest = hashlib.sha256(content).hexdigest()[:16]
            path = Path("run", "checkpoints", f"step-0000000018-epoch-000002-{digest}.pt")
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
            if whole:
                load_checkpoint(Path("run"), state.restore)
            else:
                read_checkpoint(path)

        return Try("c.pt", content, read)

    return make


def recipes(place: Path) -> Make:
    from atnet.config import make_config, to_yaml

    sound = [path.read_bytes() for path in sorted(RECIPES.glob("*.yaml"))]
    sound.append((place / "run" / "config.yaml").read_bytes())

    def make(rng: random.Random) -> Try:
        content = damaged(rng, "r.yaml", rng.choice(sound))

        def read() -> None:
            Path("r.yaml").write_bytes(content)
            to_yaml(make_config("r.yaml"))

        return Try("r.yaml", content, read)

    return make


def lists(place: Path) -> Make:
    from atnet.data.lists import open_list

    sound = [(name, (place / name).read_bytes()) for name in ("list.csv", "list.json", "list.jsonl")]
    more = [
        ("list.csv", b'path,label,split\na.png,x,train\n"b,""c.png",y,val\n'),
        ("list.csv", "path,label\n\u00e9.png,\u00fc\n".encode()),
    ]

    def make(rng: random.Random) -> Try:
        name, content = rng.choice([*sound, *more])
        content = damaged(rng, name, content)

        def read() -> None:
            Path(name).write_bytes(content)
            open_list(Path(name))

        return Try(name, content, read)

    return make


def tables(place: Path) -> Make:
    """Lists, images and indexes of shards in Parquet."""
    from atnet.data.lists import open_list
    from atnet.data.parquet import read_images
    from atnet.data.shards import open_shards

    shard = sorted((place / "shards").rglob("*.tar"))[0]
    index = shard.parent / "index" / f"{shard.stem}.parquet"
    sound = {one: one.read_bytes() for one in (place / "list.parquet", place / "images.parquet", index)}
    shutil.copy(shard, "a.tar")
    Path("index").mkdir(exist_ok=True)

    def make(rng: random.Random) -> Try:
        chosen = rng.choice(list(sound))
        content = damaged(rng, "t.parquet", sound[chosen])

        def read() -> None:
            path = Path("index", "a.parquet") if chosen == index else Path("t.parquet")
            path.write_bytes(content)
            if chosen == index:
                samples = open_shards("shards", ["a.tar"])
                for i in range(min(len(samples), 3)):
                    samples.read(i)
            elif chosen.name == "list.parquet":
                open_list(path)
            else:
                for _ in read_images(path):
                    pass

        return Try("t.parquet", content, read)

    return make


def tars(place: Path) -> Make:
    from atnet.data.shards import open_shards, scan

    sound = [sorted((place / "shards").rglob("*.tar"))[0].read_bytes()[:6144] + bytes(1024)]
    long = "a/" * 50 + "c" * 30
    for kind in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
            for name, content in ((f"{long}.png", b"1"), (f"{long}.cls", b"0"), ("b.png", b"2"), ("b.json", b"{}")):
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(content), 1.5 if kind == tarfile.PAX_FORMAT else 1
                tar.addfile(member, io.BytesIO(content))
        sound.append(stream.getvalue())

    def make(rng: random.Random) -> Try:
        content = damaged(rng, "a.tar", rng.choice(sound))
        whole = rng.random() < 0.05

        def read() -> None:
            if not whole:
                scan(io.BytesIO(content), "a.tar")
                return
            Path("a.tar").write_bytes(content)
            samples = open_shards("shards", ["a.tar"])
            for i in range(len(samples)):
                samples.read(i)

        return Try("a.tar", content, read)

    return make


def class_lists(place: Path) -> Make:
    from atnet.data.shards import read_class_list

    sound = [b"one\ntwo\n", "\ufeffeins\r\nzwei".encode(), b"\x00\nb\n", (place / "classes.txt").read_bytes()]

    def make(rng: random.Random) -> Try:
        content = rng.choice((spoilt(rng, rng.choice(sound)), rng.randbytes(rng.randrange(200))))

        def read() -> None:
            Path("classes.txt").write_bytes(content)
            read_class_list(Path("classes.txt"))

        return Try("classes.txt", content, read)

    return make


def images(place: Path) -> Make:
    from atnet.data.decode import decode, open_encoded

    with Image.open(place / "photo.png") as opened:
        small = opened.convert("RGB")
    deep = Image.fromarray(np.asarray(small.convert("L")).astype(np.uint16) * 257)
    more = {"save_all": True, "append_images": [small.rotate(9), small.rotate(20)]}
    profiles = [ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes() for name in ("sRGB", "LAB", "XYZ")]
    sound = [
        ("a.jpg", encoded(small, "JPEG")), ("a.jpg", encoded(small, "JPEG", progressive=True)),
        ("a.jpg", encoded(small.convert("CMYK"), "JPEG")), ("a.jpg", encoded(small.convert("L"), "JPEG")),
        ("a.png", encoded(small, "PNG")), ("a.png", encoded(small.quantize(16), "PNG", transparency=1)),
        ("a.png", encoded(small.convert("LA"), "PNG")), ("a.png", encoded(deep, "PNG")),
        ("a.png", encoded(small.convert("1"), "PNG")), ("a.png", encoded(small, "PNG", **more)),
        ("a.webp", encoded(small, "WEBP")), ("a.webp", encoded(small, "WEBP", lossless=True, **more)),
        ("a.webp", encoded(small.convert("RGBA"), "WEBP")), ("a.gif", encoded(small.convert("P"), "GIF")),
        ("a.gif", encoded(small, "GIF", **more)), ("a.bmp", encoded(small, "BMP")), ("a.bmp",
        encoded(small.convert("1"), "BMP")),
        ("a.bmp", encoded(small.quantize(16), "BMP")), ("a.tif", encoded(deep, "TIFF")), ("a.tif", encoded(small,
        "TIFF", **more)),
        ("a.tif", encoded(small.convert("1"), "TIFF", compression="group4")),
        *(("a.tif", encoded(small, "TIFF", compression=f"tiff_{one}")) for one in ("lzw", "jpeg", "deflate",
        "adobe_deflate")),
        ("a.mpo", encoded(small, "MPO", **more)),
    ]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 50

    def make(rng: random.Random) -> Try:
        name, content = rng.choice(sound)
        if rng.random() < 0.3:
            name, kind = rng.choice((("a.jpg", "JPEG"), ("a.png", "PNG"), ("a.webp", "WEBP"), ("a.tif", "TIFF")))
            profile, flags = spoilt(rng, rng.choice(profiles)), spoilt(rng, exif.tobytes())
            mode = rng.choice(("L", "RGB", "CMYK")) if kind in ("JPEG", "TIFF") else "RGB"
            options = {"icc_profile": profile} if kind == "TIFF" or rng.random() < 0.6 else {"exif": flags}
            content = encoded(small.convert(mode), kind, **options)
        if rng.random() < 0.9:
            content = damaged(rng, name, content)
        crop = rng.random() < 0.5

        def read() -> None:
            if crop:
                with open_encoded(content, name) as image:
                    image.decode((0, 0, image.width, image.height), rng.choice((1.0, 2.0, 5.0)))
            else:
                decode(content)

        return Try(name, content, read)

    return make


def judged(place: Path) -> Make:
    from atnet.exported.untrusted import require_harmless

    sound = [(place / name).read_bytes() for name in ("net.onnx", "net.onnx", "whole.onnx")]

    def make(rng: random.Random) -> Try:
        content, batch = damaged(rng, "n.onnx", rng.choice(sound)), rng.choice((1, 8))
        return Try("n.onnx", content, lambda: require_harmless(content, Path("n.onnx"), batch))

    return make


def networks(place: Path) -> Make:
    """Those that are judged harmless, opened and run."""
    from atnet.exported.onnx import OnnxNetwork
    from atnet.exported.untrusted import require_harmless

    sound = [(place / name).read_bytes() for name in ("net.onnx", "net.onnx", "whole.onnx")]
    with Image.open(place / "photo.png") as opened:
        photo = opened.convert("RGB")

    def make(rng: random.Random) -> Try:
        for _ in range(200):
            content = damaged(rng, "n.onnx", rng.choice(sound))
            with contextlib.suppress(AtnetError):
                require_harmless(content, Path("n.onnx"))
                break

        def read() -> None:
            Path("n.onnx").write_bytes(content)
            OnnxNetwork(Path("n.onnx"), threads=1).answer(photo)

        return Try("n.onnx", content, read)

    return make


def runs(place: Path) -> Make:
    """What reads the files of a run, and sometimes the report of it."""
    from atnet.config import read_yaml
    from atnet.run import record
    from atnet.study.compare import compare
    from atnet.viz.report import write_report
    from atnet.weights.find import find_weights
    from atnet.weights.info import note_hashes, read_unchanged

    os.chdir(ARENA / "work")
    shutil.copytree(place / "run", "run", dirs_exist_ok=True)
    shutil.copytree(place / "other", "other", dirs_exist_ok=True)
    shutil.copytree(place / "data", "data", dirs_exist_ok=True)
    files = {
        path.relative_to(place / "run"): path.read_bytes() for path in (place / "run").glob("*.*") if path.is_file()
    }
    run = Path("run")
    readers: list[Callable[[], object]] = [
        lambda: record.read_record(run), lambda: record.read_metrics(run), lambda: record.read_predictions(run),
        lambda: record.open_run(run), lambda: read_yaml(run / "environment.yaml"),
        lambda: read_unchanged(find_weights(run).path),
        lambda: note_hashes(run, {"last.safetensors": b"1"}), lambda: compare([run, "other"]),
    ]  # fmt: skip
    texts = [name for name in files if name.suffix in (".json", ".yaml", ".csv")]

    def make(rng: random.Random) -> Try:
        name = rng.choice(texts) if rng.random() < 0.9 else rng.choice(list(files))
        content = damaged(rng, str(name), files[name])
        report = rng.random() < 0.02

        def read() -> None:
            (run / name).write_bytes(content)
            refusal = None
            try:
                for reader in [*readers, *([lambda: write_report(run)] if report else [])]:
                    try:
                        reader()
                    except AtnetError as error:
                        refusal = error
            finally:
                for one in {name, Path("sha256.json")}:
                    (run / one).write_bytes(files[one])
            if refusal is not None:
                raise refusal

        return Try(str(name), content, read)

    return make


@contextlib.contextmanager
def served(place: Path, log: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    words = [sys.executable, "-m", "atnet", "serve", "--weights", "net.onnx", "--port", "0", "--timeout", "5"]
    with log.open("wb") as file:
        process = subprocess.Popen(words, cwd=place, stdout=subprocess.PIPE, stderr=file, text=True)
    assert process.stdout is not None
    try:
        port = re.search(r":(\d+)$", process.stdout.readline())
        while port and "Stop: " not in process.stdout.readline():
            pass
        yield process, int(port[1]) if port else 0
    finally:
        process.kill()
        process.communicate()


def requests(place: Path) -> Make:
    """Raw requests of fresh connections to one server."""
    log = Path("server.log").absolute()
    process, port = STACK.enter_context(served(place, log))
    photo = (place / "photo.png").read_bytes()
    made = 0

    def request(method: str, path: str, body: bytes = b"", *lines: str) -> bytes:
        lines = (f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines)
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    chunked = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
    sound = [
        request("POST", "/predict?top=3", photo), request("POST", "/predict", photo, "Expect: 100-continue"),
        request("GET", "/healthz"), request("GET", "/metadata"), request("GET", "/metrics"), request("HEAD",
        "/healthz"),
        request("GET", "/openapi.json", b"", "Connection: close"), chunked % (len(photo), photo),
        request("GET", "/healthz") + request("POST", "/predict", photo, "Connection: close"),
    ]  # fmt: skip
    pieces = [
        b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length: +5",
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked",
        b"Upgrade: websocket\r\nConnection: Upgrade",
        b"Content-Encoding: gzip", b"Content-Type: multipart/form-data; boundary=x", b"Authorization: Bearer \xff",
        b"X-Forwarded-For: 1.2.3.4, x", b"Expect: 200-x", b"Range: bytes=0-", b"Host: y", b"X: " + b"y" * 70000, b": x",
        b"Cookie: \0", b" folded: x", b"Content-Type: application/json", b"Connection: keep-alive, close",
    ]  # fmt: skip

    def make(rng: random.Random) -> Try:
        nonlocal made
        made += 1
        content = rng.choice(sound)
        for _ in range(rng.choice((1, 1, 2))):
            head, end, body = content.partition(b"\r\n\r\n")
            lines = head.split(b"\r\n")
            what = rng.choice(("line", "line", "first", "spoil", "head", "body"))
            if what == "line":
                lines.insert(rng.randrange(len(lines)) + 1, rng.choice(pieces))
            elif what == "first":
                words = rng.choice(
                    (b"POST /predict?top=%s HTTP/1.1", b"GET /%s HTTP/1.1", b"%s / HTTP/1.0", b"GET / %s")
                )
                value = rng.choice(
                    (b"0", b"-1", b"1e9", b"%00", b"%ff" * 9, b"a" * 9000, b"..%2f..", b"3&top=4", "٣".encode(), b"\0")
                )
                lines[0] = words % value
            elif what == "spoil":
                content = spoilt(rng, content)
                continue
            head = spoilt(rng, b"\r\n".join(lines)) if what == "head" else b"\r\n".join(lines)
            content = head + end + (spoilt(rng, body) if what == "body" else body)
        ends, check = rng.random() < 0.995, made % 200 == 0

        def read() -> None:
            answer = _asked(port, content, ends, f"127.0.0.{rng.randrange(2, 250)}")
            if check:
                assert _asked(port, sound[0], True).startswith(b"HTTP/1.1 200"), "an honest request is not answered"
                assert psutil.Process(process.pid).memory_info().rss < MEGABYTES * 1e6, "the server grew"
                text = log.read_text(errors="replace")
                assert "Traceback" not in text, f"the server's log: {text[-2000:]}"
                assert len(text) < 50e6, "the server's log grew"
            statuses = [int(one) for one in re.findall(rb"(?:^|[\r\n}])HTTP/1\.1 (\d+) ", answer)]
            assert not answer or statuses, f"no answer of HTTP: {answer[:80]!r}"
            assert all(status == 503 or status < 500 for status in statuses), f"statuses {statuses}"
            assert not re.search(rb":\s*-?(NaN|Infinity)", answer), "NaN in JSON"
            if 200 not in statuses:
                raise AtnetError(f"statuses {statuses}")

        return Try("request", content, read)

    return make


def _asked(port: int, content: bytes, ends: bool, source: str = "127.0.0.1") -> bytes:
    """All that the server says until it closes.  ends: whether the client says that no more comes."""
    with socket.create_connection(("127.0.0.1", port), 15, (source, 0)) as connection:
        answer = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(content)
            if ends:
                with contextlib.suppress(OSError):  # it has closed already
                    connection.shutdown(socket.SHUT_WR)
            while some := connection.recv(65536):
                answer += some
        return answer


# Each with the things that it names, and those after "|", of which a file is damaged.
COMMANDS = """
report run | data; compare run other; compare run other --json; table --add run --results results --readme README.md
--plot table.png; replay run 3 | data; eval --weights run --workers 0 | data; eval --weights run/best.safetensors
--data list.csv --workers 0 | run data; predict photo.png --weights run --json; predict photo.png --weights net.onnx
--json; predict photo.png --weights whole.onnx; predict photo.png --weights xxxs.imagenette; export --weights run
--out new.onnx | data; export --weights run --half --to safetensors --out new.safetensors | data; publish --weights
run --to published --licence mit | data; train --resume unfinished | data; train recipe.yaml --check | data; train
recipe.yaml --check --data list.csv | data; train recipe.yaml --check --data shards; train recipe.yaml --check --data
images.parquet; train recipe.yaml --check --data data --data.classes classes.txt; train recipe.yaml --out new --data
list.json | data; train recipe.yaml --check --weights run | data; train recipe.yaml --check --teacher run | data;
doctor data --out doctor.html; doctor list.csv --out doctor.html | data; doctor shards --out doctor.html; pack data
packed --size 24; pack images.parquet packed; pack list.jsonl packed | data; embed data --weights run --workers 0
--out vectors.parquet; embed data --weights run --workers 0 --like photo.png; explain photo.png --weights run --out
explained; study study.yaml --check | recipe.yaml study data; study study.yaml | recipe.yaml study data; web page
--weights net.onnx; plan recipe.yaml | data; serve --weights net.onnx --port 0; serve --weights run --port 0
"""


def commands(place: Path) -> Make:
    """Most in this process; some, and the servers, in one of their own."""
    from atnet.cli import main

    lines = [line.split() for line in COMMANDS.split(";")]

    def make(rng: random.Random) -> Try:
        words = rng.choice(lines)
        for one in list(Path.cwd().iterdir()):
            shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()
        tops = sorted({word.partition("/")[0] for word in words if (place / word.partition("/")[0]).exists()})
        for top in tops:
            copying = shutil.copytree if (place / top).is_dir() else shutil.copy
            copying(place / top, top)
        words = words[: words.index("|")] if "|" in words else words
        target = Path(rng.choice(tops or ["data"]))
        if target.is_dir():
            target = rng.choice(sorted(path for path in target.rglob("*") if path.is_file()))
        content, what = b"", "another kind of file"
        if target.is_file() and rng.random() < 0.85:
            content, what = damaged(rng, target.name, target.read_bytes()), "damaged"
            target.unlink()
            target.write_bytes(content)
            hashes = target.with_name("sha256.json")
            if hashes.is_file() and target.suffix == ".safetensors" and rng.random() < 0.7:
                hashes.unlink()
        else:
            target.unlink(missing_ok=True)
            for change in rng.sample((None, target.mkdir, lambda: os.mkfifo(target),
            lambda: target.symlink_to("nowhere"),
                                      lambda: target.symlink_to("/dev/zero"), target.touch,
                                      lambda: target.symlink_to(target.name)), 1):  # fmt: skip
                target.parent.mkdir(parents=True, exist_ok=True)
                change and change()
        apart = words[0] == "serve" or rng.random() < 0.08

        def read() -> None:
            code, out, err = _apart(words) if apart else _inside(main, words)
            assert "Traceback" not in err + out, err[-3000:]
            assert code in (0, 1, 2), f"exit code {code}: {err[-1000:]}"
            last = (err.strip().splitlines() or [""])[-1]
            assert code != 2 or re.search("^atnet: ", err, re.MULTILINE), f"not said: {err[-1000:]}"
            if code == 0 and "--json" in words:
                json.loads(out[out.index("[" if words[0] == "predict" else "{") :], parse_constant=_refuse_constant)
            if code == 2:
                raise AtnetError(last)

        return Try(f"{' '.join(words)} | {target}, {what}", content, read)

    return make


def _refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} in JSON")


def _inside(main: Callable[[list[str]], None], words: list[str]) -> tuple[object, str, str]:
    out, err = io.StringIO(), io.StringIO()
    for handler in list(logging.getLogger().handlers):
        logging.getLogger().removeHandler(handler)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as ended:
            return ended.code or 0, out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def _apart(words: list[str]) -> tuple[object, str, str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "atnet", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        said = ""
        if words[0] == "serve":
            assert process.stdout is not None
            while line := process.stdout.readline():
                said += line
                if line.startswith("Stop: "):
                    process.terminate()
                    break
        out, err = process.communicate()
    finally:
        process.kill()
    code = 0 if words[0] == "serve" and process.returncode == -signal.SIGTERM else process.returncode
    return code, said + out, err


KINDS = {
    "commands": Kind(commands, 500, 60), "networks": Kind(networks, 500, 60), "requests": Kind(requests, seconds=15),
    "weights": Kind(weights), "checkpoints": Kind(checkpoints), "runs": Kind(runs), "onnx": Kind(judged),
    "decode": Kind(images), "parquet": Kind(tables), "recipes": Kind(recipes), "list": Kind(lists), "tar": Kind(tars),
    "classes": Kind(class_lists),
}  # fmt: skip
ARENA = Path()
STACK = contextlib.ExitStack()


# Feeding: a process for each kind, and its parent, which starts it anew where a try ended it.


@dataclass
class Fed:
    """What came of the tries of a kind.  slowest: seconds.  megabytes: the most that a try added."""

    tries: int = 0
    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    megabytes: float = 0.0
    findings: list[dict[str, Any]] = field(default_factory=list)


def feed(name: str, seed: int, numbers: range, until: float, place: Path) -> None:
    """The process. Its status is in status.json of its arena, the number of the try at work in `number`."""
    kind = KINDS[name]
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    status, at_work = ARENA / "status.json", os.open(ARENA / "number", os.O_RDWR | os.O_CREAT)
    fed, parent = Fed(), os.getppid()
    logging.getLogger("atnet").setLevel(logging.CRITICAL)

    def too_long(*_: object) -> None:
        raise TooLongError(f"not done after {kind.seconds} s")

    signal.signal(signal.SIGALRM, too_long)
    with STACK:
        make = kind.setup(place)
        before = _outside(place)
        for number in numbers:
            if time.time() > until or os.getppid() != parent:
                break
            os.pwrite(at_work, b"%20d" % number, 0)
            one = make(random.Random(f"{name} {seed} {number}"))
            Path("/proc/self/clear_refs").write_text("5")  # the peak is of this try
            held, began = _memory("VmRSS"), time.perf_counter()
            signal.setitimer(signal.ITIMER_REAL, kind.seconds)
            fault = ""
            try:
                one.read()
                fed.accepted += 1
            except AtnetError:
                fed.refused += 1
            except BaseException as error:
                signal.setitimer(signal.ITIMER_REAL, 0)
                fault = "".join(traceback.format_exception(error))[-4000:]
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            fed.tries += 1
            fed.slowest = max(fed.slowest, time.perf_counter() - began)
            grown = _memory("VmHWM") - held
            fed.megabytes = max(fed.megabytes, grown)
            if grown > MEGABYTES:
                fault = fault or f"took {grown:,.0f} MB"
            if not fault and (kind.tries < 20_000 or number % 500 == 499) and (after := _outside(place)) != before:
                fault, before = f"changed: {sorted(before.items() ^ after.items())[:4]}", after
            if fault:
                kept = _keep(name, seed, number, one.content, one.name)
                fed.findings.append({"number": number, "input": one.name, "kept": kept, "fault": fault})
            if fault or number % 50 == 49 or number == numbers[-1]:
                status.write_text(json.dumps(vars(fed)))
    status.write_text(json.dumps(vars(fed)))


def _memory(what: str) -> float:
    """MB."""
    found = re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1000 if found else 0.0


def _outside(place: Path) -> dict[str, tuple[int, int]]:
    paths = [
        *place.rglob("*"),
        *(path for path in ARENA.iterdir() if path.name not in ("work", "status.json", "number")),
    ]
    found = ((path, path.lstat()) for path in paths if path.is_file() and "__pycache__" not in path.parts)
    return {str(path): (one.st_size, one.st_mtime_ns) for path, one in found}


def _keep(name: str, seed: int, number: int, content: bytes, called: str) -> str:
    path = BUILD / "fuzz" / f"{name}-{seed}-{number}{Path(called.split(',')[0]).suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


BUILD = Path("build").absolute()


def supervise(name: str, seed: int, numbers: range, until: float, place: Path) -> Fed:
    """The parent: goes on after a try that ended the process, or that even its alarm did not end."""
    total = Fed()
    while len(numbers):
        with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-", ignore_cleanup_errors=True) as arena:
            for folder in ("work", "home"):
                Path(arena, folder).mkdir()
            Path(arena, "bait").write_bytes(b"bait" * 1000)
            words = [name, "--seed", seed, "--first", numbers[0], "--tries", len(numbers), "--until", until,
                     "--place", place, "--arena", arena, "--build", BUILD]  # fmt: skip
            environment = os.environ | {
                "HOME": f"{arena}/home", "XDG_CACHE_HOME": f"{arena}/home", "OMP_NUM_THREADS": "1", "COLUMNS": "200",
                "PYTHONFAULTHANDLER": "1", "ATNET_CACHE": f"{arena}/home",
            }  # fmt: skip
            with Path(arena, "home", "said").open("wb") as said:
                process = subprocess.Popen(
                    [sys.executable, __file__, *map(str, words)], cwd=f"{arena}/work", env=environment, stdout=said,
                    stderr=said, start_new_session=True,
                )  # fmt: skip
                last, since = "", time.monotonic()
                while process.poll() is None:
                    time.sleep(0.2)
                    number = _read(Path(arena, "number"))
                    if number != last:
                        last, since = number, time.monotonic()
                    elif time.monotonic() - since > 3 * KINDS[name].seconds + 60:
                        process.kill()
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            part = json.loads(_read(Path(arena, "status.json")) or "{}")
            for key, value in part.items():
                both = getattr(total, key)
                setattr(total, key, max(both, value) if key in ("slowest", "megabytes") else both + value)
            if not process.returncode:
                break
            if not last:
                sys.exit(f"{name}: {_read(Path(arena, 'home', 'said'))[-3000:]}")
            fault = f"ended with {process.returncode}: {_read(Path(arena, 'home', 'said'))[-3000:]}"
            total.findings.append({"number": int(last), "input": "", "kept": "", "fault": fault})
            total.tries = max(total.tries, int(last) + 1 - numbers[0])
            numbers = range(int(last) + 1, numbers[-1] + 1)
    return total


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def everything(minutes: float, seed: int, place: Path) -> dict[str, list[Fed]]:
    """All kinds, two at a time, in rounds with a seed of their own; the first round is always made whole."""
    found: dict[str, list[Fed]] = {name: [] for name in KINDS}
    until, round_ = time.time() + 60 * minutes, 0
    while not round_ or time.time() < until:

        def one(name: str, seed: int, until: float) -> None:
            fed = supervise(name, seed, range(KINDS[name].tries), until, place)
            found[name].append(fed)
            print(_row(name, fed, seed), flush=True)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(one, KINDS, [seed + round_] * len(KINDS), [until if round_ else math.inf] * len(KINDS)))
        round_ += 1
    return found


def _row(name: str, fed: Fed, seed: int) -> str:
    return (
        f"{name:12} {fed.tries:>9,} {fed.accepted:>9,} {fed.refused:>9,} {len(fed.findings):>9,} {fed.slowest:>9.1f} "
        f"{fed.megabytes:>9,.0f} {seed:>6}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["all", "prepare", *KINDS])
    parser.add_argument("minutes", type=float, nargs="?", default=0.0)
    parser.add_argument("photos", type=Path, nargs="?")
    for option, default in (("--seed", 0), ("--first", 0), ("--tries", 0), ("--only", -1)):
        parser.add_argument(option, type=int, default=default)
    for option in ("--place", "--arena", "--build"):
        parser.add_argument(option, type=Path)
    parser.add_argument("--until", type=float, default=math.inf)
    given = parser.parse_args()
    name, seed = given.kind, given.seed
    global ARENA, BUILD
    if given.arena:
        ARENA, BUILD = given.arena, given.build
        feed(name, seed, range(given.first, given.first + given.tries), given.until, given.place)
        return
    if name == "prepare":
        prepare(given.place, given.photos)
        return
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        place = (given.place or Path(folder)).absolute()
        if not given.place:
            photos = [str(given.photos.absolute())] if given.photos else []
            words = [sys.executable, __file__, "prepare", *(["0", *photos] if photos else []), "--place", folder]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(
            " ".join(
                f"{head:>9}"
                for head in (
                    "kind        ",
                    "tries",
                    "accepted",
                    "refused",
                    "findings",
                    "slowest s",
                    "most MB",
                    " seed",
                )
            )
        )
        if name == "all":
            found = everything(given.minutes or 30, seed, place)
        else:
            numbers = range(given.tries or (10**9 if given.minutes else KINDS[name].tries))
            numbers = range(given.only, given.only + 1) if given.only >= 0 else numbers[given.first :]
            until = time.time() + 60 * given.minutes if given.minutes else math.inf
            found = {name: [supervise(name, seed, numbers, until, place)]}
            print(_row(name, found[name][0], seed))
    findings = [
        (name, seed + i, one) for name, feds in found.items() for i, fed in enumerate(feds) for one in fed.findings
    ]
    for name, number, one in findings:
        last = one["fault"].strip().splitlines()[-1][:300]
        print(f"FOUND  {name} --seed {number} --only {one['number']}  {one['input']}: {last}  {one['kept']}")
    BUILD.mkdir(exist_ok=True)
    report = {name: [vars(fed) | {"seed": seed + i} for i, fed in enumerate(feds)] for name, feds in found.items()}
    (BUILD / "fuzz.json").write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
