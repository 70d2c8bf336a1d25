"""Networks side by side: latency, throughput, training speed and memory, alternated in rounds.

Each network runs in a process of its own. Within a round they take turns, so that what else the machine
does meets all of them, and a ratio is taken within its round.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from atnet.bench.roof import Roof, measure_roof
from atnet.device import multiplies_in_bf16, pick_device
from atnet.errors import ConfigError
from atnet.exported.graph import write_onnx
from atnet.files import csv_table, markdown_table, replace_between
from atnet.models.cost import Cost, cost_of
from atnet.models.load import architecture_of, create_deployed
from atnet.progress import progress_bar
from atnet.run.record import commit
from atnet.system import processor

ENGINES = ("onnx", "eager", "compile", "train", "train-compile")
Columns = tuple[list[str], list[list[str]]]
"""The heads of a table and its rows."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One network under one engine.

    median, p95: milliseconds of a run of the whole batch.  images_per_s: at the median.
    ratio: its time over the reference's, median over the rounds; low and high the least and greatest of them.
    compute, memory: shares, 0 to 1, of what the machine can do at most in these threads, or the device: of the
    multiply-adds (three times those of inference in training), and of the bandwidth, to read the weights once in each
    run.
    first: from the start of a process to its first answer, seconds.  peak: memory of the process, or GPU, MB.
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
    compute: float
    memory: float
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
            [sys.executable, "-m", "atnet.bench.worker"],
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
        with suppress(BrokenPipeError):  # of a process that was killed; what was not sent is dropped
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
    precision: str = "auto",
    device: str = "cpu",
) -> list[Timing]:
    """Times networks of fresh weights side by side.

    models: AT-Net sizes and timm architectures, or weights by a name that `atnet.load` takes, for their architecture.
    engine: "onnx" (ONNX Runtime), "eager" and "compile" (torch),
    "train" and "train-compile" (a step of training, by the recipe, in the precision).
    seconds: of each network's turn in each round.
    device: "cpu", "cuda" or "mps", where torch computes; there inference is in the precision too.
    reference: the model that ratios are taken to; the first if None.
    Raises ConfigError naming a model that is unknown or cannot run.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine {engine!r} is unknown: use {', '.join(ENGINES)}")
    device = pick_device(device).type
    if engine == "onnx" and device != "cpu":
        raise ConfigError(f"--engine onnx is of CPUs: with --device {device} use eager, compile, train, train-compile")
    names = list(dict.fromkeys(architecture_of(model) for model in models))
    base = architecture_of(reference) if reference else names[0]
    if base not in names:
        names.append(base)
    roof = roof_of(engine, threads, precision, device)
    with tempfile.TemporaryDirectory() as folder:

        def case_of(name: str) -> dict[str, Any]:
            case: dict[str, Any] = {
                "engine": engine, "model": name, "size": size, "threads": threads,
                "recipe": str(recipe) if recipe else None, "precision": precision, "device": device,
                "onnx": f"{folder}/{name}.onnx",
            }  # fmt: skip
            if engine == "onnx":
                write_onnx(create_deployed(name, size=size), (3, size, size), Path(case["onnx"]))
            return case

        workers = take_turns(
            names, case_of, batch=batch, rounds=rounds, seconds=seconds, title=f"{engine}, {size} px, batch {batch}"
        )
        disk = {name: Path(f"{folder}/{name}.onnx").stat().st_size / 1e6 for name in names if engine == "onnx"}
    medians = {name: [statistics.median(times) for times in worker.rounds] for name, worker in workers.items()}
    training = engine.startswith("train")
    passes = 3 if training else 1  # forward, and the gradients of inputs and of weights
    timings = []
    for name, worker in workers.items():
        cost = cost_of(name, size, deployed=not training)
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
                compute=2 * passes * cost.macs * batch / median / roof.flops,
                memory=4 * cost.parameters / median / roof.bytes,
                first=worker.first,
                peak=worker.peak,
                disk=disk.get(name, 4 * cost.parameters / 1e6),
            )
        )
    return timings


def roof_of(engine: str, threads: int, precision: str, device: str = "cpu") -> Roof:
    """What bounds an engine: training's products may be bf16, and on a GPU all; inference's on a CPU are fp32."""
    may = engine.startswith("train") or device != "cpu"
    return measure_roof(threads, bf16=may and multiplies_in_bf16(precision, torch.device(device)), device=device)


def take_turns(
    names: Sequence[str],
    case_of: Callable[[str], dict[str, Any]],
    *,
    batch: int,
    rounds: int,
    seconds: float,
    title: str,
) -> dict[str, Worker]:
    """Builds each name's case, then times all in rounds, each round from another one on; their workers, closed."""
    workers: dict[str, Worker] = {}
    try:
        with progress_bar(title, len(names) * (rounds + 1)) as advance:
            for name in names:
                workers[name] = Worker(case_of(name))
                workers[name].run(batch, 0)
                advance(1, name)
            for turn in range(rounds):
                for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
                    workers[name].rounds.append(workers[name].run(batch, seconds))
                    advance(1, name)
    finally:
        for worker in workers.values():
            worker.close()
    return workers


def machine() -> dict[str, Any]:
    """What timings depend on beside the networks."""
    packages = {name: version(name) for name in ("torch", "timm", "onnxruntime")}
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"processor": processor(), "cores": os.cpu_count(), **gpu, "commit": commit(), **packages}


def machine_line() -> str:
    """The same in one line, without what is unknown."""
    return ", ".join(f"{name} {value}" for name, value in machine().items() if value)


COLUMNS: dict[str, Callable[[Timing], str]] = {
    "Model": lambda t: t.model.removeprefix("atnet_"),
    "Params": lambda t: f"{t.cost.parameters / 1e6:.2f}M",
    "Multiply-adds": lambda t: f"{t.cost.macs / 1e6:,.0f}M",
    "px": lambda t: str(t.size),
    "Batch": lambda t: str(t.batch),
    "Threads": lambda t: str(t.threads),
    "Engine": lambda t: t.engine,
    "Median, ms": lambda t: f"{t.median:.2f}",
    "95%, ms": lambda t: f"{t.p95:.2f}",
    "Images/s": lambda t: f"{t.images_per_s:.0f}",
    "Ratio (range)": lambda t: f"{t.ratio:.2f} ({t.ratio_low:.2f} to {t.ratio_high:.2f})",
    "Of compute": lambda t: f"{t.compute:.0%}",
    "Of memory": lambda t: f"{t.memory:.0%}",
    "First answer, s": lambda t: f"{t.first:.1f}",
    "Memory, MB": lambda t: f"{t.peak:.0f}",
    "Disk, MB": lambda t: f"{t.disk:.1f}",
}
SETTING = ("px", "Batch", "Threads", "Engine")


def columns_of(timings: Sequence[Timing]) -> Columns:
    """The table of timings, without the settings that all of them share."""
    shared = {name for name in SETTING if len({COLUMNS[name](timing) for timing in timings}) == 1}
    heads = [name for name in COLUMNS if name not in shared]
    return heads, [[COLUMNS[head](timing) for head in heads] for timing in timings]


def publish(tables: Sequence[Columns], notes: str, document: Path, title: str) -> Path:
    """Puts the tables, an image's link and the notes between the title's markers in a document.

    Returns where the image is to be drawn.  Raises ConfigError if the markers are not there.
    """
    image = document.with_name(f"{document.stem}-{title}.png")
    laid = "\n".join(markdown_table(*table) for table in tables)
    body = f"\n{laid}\n![{title}]({image.name})\n\n{notes}\n"
    replace_between(document, f"<!-- {title}: begin, made by `make bench` -->", f"<!-- {title}: end -->", body)
    return image


def to_csv(timings: Sequence[Timing]) -> str:
    """A line a timing."""
    rows = [asdict(timing) for timing in timings]
    rows = [row.pop("cost") | row for row in rows]
    return csv_table([{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows])
