"""Networks side by side: latency, throughput, training speed and memory, alternated in rounds.

Each network runs in a process of its own. Within a round they take turns, so that what else the machine
does meets all of them, and a ratio is taken within its round.
"""

import csv
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np

from atnet.deploy.export import write_onnx
from atnet.errors import ConfigError
from atnet.files import replace_between
from atnet.measure.cost import Cost, cost_of
from atnet.measure.record import commit
from atnet.model.load import architecture, create_deployed
from atnet.progress import progress_bar
from atnet.system import processor

ENGINES = ("onnx", "eager", "compile", "train")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One network under one engine.

    median, p95: milliseconds of a run of the whole batch.  images_per_s: at the median.
    ratio: its time over the reference's, median over the rounds; low and high the least and greatest of them.
    first: from the start of a process to its first answer, seconds.  peak: memory of the process, MB.
    disk: the ONNX file, or the fp32 weights, MB.
    """

    model: str
    engine: str
    size: int
    batch: int
    threads: int
    cost: Cost
    median: float
    p95: float
    images_per_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    first: float
    peak: float
    disk: float


class Worker:
    """A network in a process, waiting to be timed."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.name = f"{case['model']} on {case['engine']}"
        self.rounds: list[list[float]] = []
        self.first = self.peak = 0.0
        self._said: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the process
        threads = str(case["threads"])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "atnet.measure.bench_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        )
        self._tell(case | {"began": time.time()})

    def run(self, batch: int, seconds: float) -> list[float]:
        """Seconds of each run that fits in the time. Raises ConfigError with the process's last words if it ended."""
        assert self._process.stdout
        self._tell({"batch": batch, "seconds": seconds})
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            words = self._said.read().strip().splitlines()
            raise ConfigError(f"{self.name}: {words[-1] if words else 'its process was killed'}")
        answer = json.loads(line)
        self.first, self.peak = answer["first"], answer["peak_mb"]
        times: list[float] = answer["times"]
        return times

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._said.close()

    def _tell(self, what: dict[str, Any]) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # its last words are read where its answer is waited for
            return


def bench(
    models: Sequence[str],
    *,
    size: int = 224,
    batch: int = 1,
    engine: str = "onnx",
    threads: int = 1,
    rounds: int = 7,
    seconds: float = 0.5,
    reference: str | None = None,
    recipe: str | Path | None = None,
) -> list[Timing]:
    """Times networks of fresh weights side by side.

    models: AT-Net sizes and timm architectures.  engine: "onnx" (ONNX Runtime), "eager" and "compile" (torch),
    "train" (a step of training, by the recipe).  seconds: of each network's turn in each round.
    reference: the model that ratios are taken to; the first if None.
    Raises ConfigError naming a model that is unknown or cannot run.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine {engine!r} is unknown: use {', '.join(ENGINES)}")
    names = list(dict.fromkeys(architecture(model) for model in models))
    base = architecture(reference) if reference else names[0]
    if base not in names:
        names.append(base)
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            with progress_bar(f"{engine}, {threads} threads, batch {batch}", len(names) * (rounds + 1)) as advance:
                for name in names:
                    case: dict[str, Any] = {
                        "engine": engine, "model": name, "size": size, "threads": threads,
                        "recipe": str(recipe) if recipe else None, "onnx": f"{folder}/{name}.onnx",
                    }  # fmt: skip
                    if engine == "onnx":
                        write_onnx(create_deployed(name, size=size), size, Path(case["onnx"]))
                    workers[name] = Worker(case)
                    workers[name].run(batch, 0)
                    advance(1, name)
                for turn in range(rounds):
                    for name in names[turn % len(names) :] + names[: turn % len(names)]:
                        workers[name].rounds.append(workers[name].run(batch, seconds))
                        advance(1, name)
        finally:
            for worker in workers.values():
                worker.close()
        disk = {name: Path(f"{folder}/{name}.onnx").stat().st_size / 1e6 for name in names if engine == "onnx"}
    medians = {name: [statistics.median(times) for times in worker.rounds] for name, worker in workers.items()}
    timings = []
    for name, worker in workers.items():
        cost = cost_of(name, size)
        every = [run for times in worker.rounds for run in times]
        ratios = [ours / theirs for ours, theirs in zip(medians[name], medians[base], strict=True)]
        median = statistics.median(every)
        timings.append(
            Timing(
                model=name,
                engine=engine,
                size=size,
                batch=batch,
                threads=threads,
                cost=cost,
                median=1e3 * median,
                p95=1e3 * float(np.quantile(every, 0.95)),
                images_per_s=batch / median,
                ratio=statistics.median(ratios),
                ratio_low=min(ratios),
                ratio_high=max(ratios),
                first=worker.first,
                peak=worker.peak,
                disk=disk.get(name, 4 * cost.parameters / 1e6),
            )
        )
    return timings


def machine() -> dict[str, Any]:
    """What timings depend on beside the networks."""
    packages = {name: version(name) for name in ("torch", "timm", "onnxruntime")}
    return {"processor": processor(), "cores": os.cpu_count(), "commit": commit(), **packages}


def machine_line() -> str:
    """The same in one line, without what is unknown."""
    return ", ".join(f"{name} {value}" for name, value in machine().items() if value)


def to_markdown(timings: Sequence[Timing]) -> str:
    """A row a timing."""
    head = ["Model", "Params", "Multiply-adds", "px", "Batch", "Threads", "Median, ms", "95%, ms", "Images/s",
            "Ratio (range)", "First answer, s", "Memory, MB", "Disk, MB"]  # fmt: skip
    rows = [
        [
            t.model.removeprefix("atnet_"), f"{t.cost.parameters / 1e6:.2f}M", f"{t.cost.macs / 1e6:,.0f}M",
            str(t.size), str(t.batch), str(t.threads), f"{t.median:.2f}", f"{t.p95:.2f}", f"{t.images_per_s:.0f}",
            f"{t.ratio:.2f} ({t.ratio_low:.2f} to {t.ratio_high:.2f})", f"{t.first:.1f}", f"{t.peak:.0f}",
            f"{t.disk:.1f}",
        ]
        for t in timings
    ]  # fmt: skip
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def publish(timings: Sequence[Timing], document: Path, title: str) -> Path:
    """Puts the table, a picture's link and the machine between the title's markers in a document.

    Returns where the picture is to be drawn.  Raises ConfigError if the markers are not there.
    """
    picture = document.with_name(f"{document.stem}-{title}.png")
    body = f"\n{to_markdown(timings)}\n![{title}]({picture.name})\n\n{machine_line()}\n"
    replace_between(document, f"<!-- {title}: begin, made by `make bench` -->", f"<!-- {title}: end -->", body)
    return picture


def to_csv(timings: Sequence[Timing]) -> str:
    """A line a timing."""
    table = io.StringIO()
    rows = [asdict(timing) for timing in timings]
    rows = [row.pop("cost") | row for row in rows]
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})
    return table.getvalue()
