"""`make proof-faults`: a training is killed, stopped, starved and spoilt; each time it goes on to the same bits.

python faults.py PHOTOS [NUMBER ...]: the points to prove, all of them if none is named. PHOTOS is a folder with train/
and val/. A line a point, then a table; exit code 1 if a point fails.
"""

import dataclasses
import errno
import json
import logging
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

import atnet
from atnet import files
from atnet.config import make_config, to_yaml
from atnet.data.order import BatchOrder
from atnet.errors import AtnetError, ConfigError
from atnet.models.atnet import SeparableConv
from atnet.run.record import checkpoints, read_metrics
from atnet.training import loop, state
from atnet.training.checkpoint import load_checkpoint
from atnet.training.faults import replay

VICTIM = str(Path(__file__).with_name("victim.py"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
IMAGES = {"train": 80, "val": 25}
CLASSES = ("n01440764", "n03394916", "n03445777")
OPTIONS: dict[str, Any] = {
    "model": "xxxs+depths=2,2,11+attention_depths=1,1",
    "epochs": 3,
    "batch": 20,
    "drop_path": 0.2,
    "save_minutes": 0.01,
    "threads": 1,
    "data": {"size": 32, "workers": 2},
    "augment": {"crop_scale": 0.4, "randaugment": 1, "mixup": 0.2, "erasing": 0.25},
    "optim": {"name": "muon", "lr": 2e-3, "accumulate": 2},
}
Finding = tuple[bool, str]
POINTS: dict[int, tuple[str, Callable[["Proof"], Finding]]] = {}


def point(number: int, claim: str) -> Callable[[Callable[["Proof"], Finding]], Callable[["Proof"], Finding]]:
    def register(function: Callable[["Proof"], Finding]) -> Callable[["Proof"], Finding]:
        POINTS[number] = (claim, function)
        return function

    return register


class Proof:
    """The unbroken run that all others are held against, and how they are made."""

    def __init__(self, photos: Path, folder: Path) -> None:
        for part, count in IMAGES.items():
            for name in CLASSES:
                (folder / "photos" / part / name).mkdir(parents=True)
                for image in sorted((photos / part / name).iterdir())[:count]:
                    (folder / "photos" / part / name / image.name).symlink_to(image.resolve())
        self.folder = folder
        self.options = OPTIONS | {"data": OPTIONS["data"] | {"source": str(folder / "photos")}}
        self.random = random.Random(0)
        self.whole = self.run("whole", place="nowhere")
        self.seconds = json.loads((self.whole / "record.json").read_text())["seconds"]

    def recipe(self, name: str, **options: Any) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(to_yaml(make_config(**self.options | options)))
        return path

    def victim(self, name: str, place: str, number: str, count: int, **options: Any) -> list[str]:
        """The script and its words for a training into the folder `name`, or for going on there."""
        run = self.folder / name
        words = ["--resume", str(run)] if checkpoints(run) else [str(self.recipe(name, **options)), "--out", str(run)]
        return [VICTIM, number, place, str(count), str(self.folder / f"{name}.losses"), "--", "train", *words]

    def start(self, name: str, place: str, number: str = "SIGKILL", count: int = 1, **options: Any) -> Any:
        """A process that trains into the folder `name`, or goes on there."""
        command = [sys.executable, *self.victim(name, place, number, count, **options)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder)

    def run(self, name: str, place: str = "nowhere", **options: Any) -> Path:
        """The run's folder, trained to its end."""
        said, _ = (process := self.start(name, place, **options)).communicate()
        if process.returncode:
            sys.exit(f"{name}: {said}")
        return self.folder / name

    def same(self, run: Path, whole: Path | None = None) -> bool:
        """Whether weights, averages and the optimizers' state are the unbroken run's, bit for bit.

        But for the learning rates in it: each step sets them anew, and a run that is resumed at its end takes none.
        """
        one, other = load_checkpoint(whole or self.whole), load_checkpoint(run)
        for checkpoint in (one, other):
            for optimizer in checkpoint["optimizers"]:
                for group in optimizer["param_groups"]:
                    del group["lr"]
        names = ("last.safetensors", "ema.safetensors", "best.safetensors")
        files = all((run / name).read_bytes() == ((whole or self.whole) / name).read_bytes() for name in names)
        return files and all(equal(one[part], other[part]) for part in ("networks", "optimizers", "step", "best"))

    def losses(self, name: str) -> dict[int, float]:
        """The loss of each step; where one was done twice, both were the same, or this fails."""
        found: dict[int, float] = {}
        for line in (self.folder / f"{name}.losses").read_text().splitlines():
            step, loss = line.split()
            if found.setdefault(int(step), float(loss)) != float(loss):
                sys.exit(f"{name}: step {step} had the loss {found[int(step)]}, then {loss}")
        return found

    def losses_close(self, name: str) -> dict[int, float]:
        """The loss of each step; where several ranks or numbers of ranks did it, the last one's."""
        lines = (self.folder / f"{name}.losses").read_text().splitlines()
        return {int(step): float(loss) for step, loss in map(str.split, lines)}


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@point(1, "SIGKILL anywhere, then resumed: weights, average, optimizer bitwise those of the unbroken run")
def kills(proof: Proof) -> Finding:
    aimed = [("write", 1), ("write", 3), ("rename", 4), ("rename", 9), ("evaluation", 2), ("evaluation", 3)]
    aimed += [("accumulation", 5), ("accumulation", 20)]
    good = 0
    for number in range(20):
        name = f"kill-{number}"
        if number < len(aimed):
            process = proof.start(name, *aimed[number][:1], count=aimed[number][1])
            process.wait()
        else:
            process = proof.start(name, "nowhere")
            wait_for(lambda name=name: (proof.folder / name / "config.yaml").exists(), process)
            time.sleep(proof.random.uniform(0, proof.seconds))
            process.kill()
            process.wait()
        restart_if_unsaved(proof.folder / name)
        good += proof.same(proof.run(name))
        proof.losses(name)
    often = 0
    for number in range(2):
        name = f"often-{number}"
        for _ in range(10):
            process = proof.start(name, "step", count=proof.random.randint(2, 4))
            process.wait()
            restart_if_unsaved(proof.folder / name)
        often += proof.same(proof.run(name))
    return good == 20 and often == 2, f"{good} of 20 ({len(aimed)} aimed), ten kills in one run {often} of 2"


def restart_if_unsaved(run: Path) -> None:
    """A run killed before its first checkpoint has nothing to go on from."""
    if not checkpoints(run):
        shutil.rmtree(run, ignore_errors=True)


def wait_for(what: Callable[[], bool], process: Any) -> None:
    while not what():
        if process.poll() is not None:
            sys.exit(f"the training ended too early: {process.communicate()[0]}")
        time.sleep(0.01)


@point(2, "resumed with 0, 1, 2, 4 loader processes: bitwise; 1, 2, 1 ranks: same images, loss within 1e-5")
def workers_and_ranks(proof: Proof) -> Finding:
    proof.start("half", "step", count=13).wait()
    good = 0
    for workers in (0, 1, 2, 4):
        run = Path(shutil.copytree(proof.folder / "half", proof.folder / f"workers-{workers}"))
        config = loop.open_run(run)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=workers))
        (run / "config.yaml").write_text(to_yaml(config))
        good += proof.same(proof.run(run.name))
    order = {"seed": 3, "count": 240, "batch": 20, "first": 7, "last": 40}
    whole = list(BatchOrder(**order))  # type: ignore[arg-type]
    halves = zip(*(BatchOrder(**order, share=(rank, 2)) for rank in (0, 1)), strict=True)  # type: ignore[arg-type]
    images = [one + two for one, two in halves] == whole
    run = proof.folder / "ranks"
    proof.start("ranks", "step", "SIGTERM", 7).wait()
    two = torchrun(proof, "ranks", place="step", number="SIGTERM", count=9)
    two.wait()
    before = int(checkpoints(run)[0].name.split("-")[1])
    proof.run("ranks")
    ours, theirs = proof.losses_close("ranks"), proof.losses("whole")
    apart = max(abs(ours[step] - theirs[step]) / theirs[step] for step in theirs)
    fine = good == 4 and images and apart < 1e-5 and before > 7
    return fine, f"workers {good} of 4; ids equal: {images}; loss apart by {apart:.1e} relative"


def torchrun(proof: Proof, name: str, place: str, number: str, count: int, *more: str, **options: Any) -> Any:
    victim = proof.victim(name, place, number, count, **options)
    command = [*TORCHRUN, "--nproc-per-node", "2", *more, *victim]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=proof.folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@point(3, "1,000 bit flips, 300 truncations, 100 zeroed pages: all noticed, the newest sound one taken or none named")
def damage(proof: Proof) -> Finding:
    run = Path(shutil.copytree(proof.whole, proof.folder / "damage"))
    paths = checkpoints(run)
    contents = {path: path.read_bytes() for path in paths}
    noticed = 0
    kinds = ["flip"] * 1000 + ["cut"] * 300 + ["zero"] * 100
    for kind in kinds:
        which = proof.random.choice([paths[:1], paths[1:], paths])
        for path in which:
            path.write_bytes(spoilt(contents[path], kind, proof.random))
        try:
            found = load_checkpoint(run)["epoch"]
            noticed += len(which) == 1 and found == (2 if which == paths[:1] else 3)
        except ConfigError as error:
            noticed += which == paths and "every checkpoint in it is damaged" in str(error)
        for path in which:
            path.write_bytes(contents[path])
    return noticed == len(kinds), f"{noticed} of {len(kinds)}"


def spoilt(content: bytes, kind: str, chosen: random.Random) -> bytes:
    place = chosen.randrange(len(content))
    if kind == "cut":
        return content[:place]
    changed = bytearray(content)
    if kind == "flip":
        changed[place] ^= 1 << chosen.randrange(8)
        return bytes(changed)
    page = place // 4096 * 4096
    while not any(changed[page : page + 4096]):
        page = chosen.randrange(len(content)) // 4096 * 4096
    changed[page : page + 4096] = bytes(len(changed[page : page + 4096]))
    return bytes(changed)


@point(4, "the n-th write, fsync or rename fails (ENOSPC, EIO): the checkpoint before loads")
def full_disk(proof: Proof) -> Finding:
    good = tried = 0
    for number in range(100):
        run = Path(shutil.copytree(proof.whole, proof.folder / "disk", dirs_exist_ok=False))
        code = (errno.ENOSPC, errno.EIO)[number % 2]
        before = load_checkpoint(run)["step"]
        training = state.State(loop.open_run(run))
        training.restore(load_checkpoint(run))
        training.step += 1
        training.epoch += 1
        scores = {name: fake_scores() for name in training.networks}
        tried += 1
        reached = failing_at(1 + number // 2 % 24, code)
        real = os.fsync, os.replace

        def sync(file: int, reached: Any = reached, real: Any = real[0]) -> None:
            reached()
            real(file)

        def replace(source: Any, target: Any, reached: Any = reached, real: Any = real[1]) -> None:
            reached()
            real(source, target)

        def opened(handle: int, mode: str, reached: Any = reached) -> Any:
            return Writing(open(handle, mode), reached) if mode.startswith("w") else open(handle, mode)

        os.fsync, os.replace, files.open = sync, replace, opened  # type: ignore[attr-defined]
        try:
            loop._save(training, run, scores, [dict(row) for row in read_metrics(run)], True)
            failed = False
        except OSError:
            failed = True
        finally:
            os.fsync, os.replace = real
            del files.open  # type: ignore[attr-defined]
        found = load_checkpoint(run)["step"]
        good += found in ((before, before + 1) if failed else (before + 1,)) and not list(run.rglob("*.tmp"))
        shutil.rmtree(run)
    return good == 100, f"{good} of {tried}"


def failing_at(count: int, code: int) -> Callable[[], None]:
    """A call that raises the count-th time."""
    calls = 0

    def reached() -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            raise OSError(code, os.strerror(code))

    return reached


class Writing:
    """An open file whose writes may fail."""

    def __init__(self, file: Any, reached: Callable[[], None]) -> None:
        self.file, self.reached = file, reached

    def write(self, content: Any) -> int:
        self.reached()
        return int(self.file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "Writing":
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()


def fake_scores() -> Any:
    from atnet.eval.metrics import Scores

    none = torch.zeros(1).numpy()
    return Scores(loss=1.0, top1=1.0, top5=1.0, classes=3, labels=none, predicted=none, confidence=none)


@point(5, "SIGTERM anywhere, on 1 and 2 ranks: saved, exit code 143, resumed bitwise")
def sigterms(proof: Proof) -> Finding:
    moments = [("step", 1), ("step", 9), ("evaluation", 1), ("evaluation", 3), ("save", 1), ("write", 2), ("data", 1)]
    moments += [("data", 8)]
    good = 0
    slowest = 0.0
    for number, (place, count) in enumerate(moments):
        process = proof.start(f"term-{number}", place, "SIGTERM", count)
        said, _ = process.communicate()
        run = proof.folder / f"term-{number}"
        fine = process.returncode == 143 and "saved; go on with" in said and bool(checkpoints(run))
        good += fine and proof.same(proof.run(run.name))
    process = torchrun(proof, "two", "nowhere", "SIGTERM", 1)
    said, _ = process.communicate()
    whole = proof.folder / "two"
    for number, (place, count) in enumerate([("step", 3), ("evaluation", 2), ("save", 1), ("data", 6)]):
        name = f"term-two-{number}"
        began = time.monotonic()
        said, _ = torchrun(proof, name, place, "SIGTERM", count).communicate()
        slowest = max(slowest, time.monotonic() - began)
        fine = "saved; go on with" in said and "143" in said
        process = torchrun(proof, name, "nowhere", "SIGTERM", 1)
        again, _ = process.communicate()
        same = process.returncode == 0 and proof.same(proof.folder / name, whole)
        if not (fine and same):
            print(said[-2000:], again[-500:])
        good += fine and same
    return good == 12, f"{good} of 12, whole commands on two ranks at most {slowest:.0f} s"


@point(6, "torchrun with 2 ranks, one killed: goes on")
def lost_ranks(proof: Proof) -> Finding:
    good, waits = 0, []
    for number in range(6):
        name = f"lost-{number}"
        run = proof.folder / name
        process = torchrun(proof, name, "nowhere", "SIGTERM", 1, "--max-restarts", "2")
        wait_for(lambda run=run: bool(checkpoints(run)), process)
        time.sleep(proof.random.uniform(0, 3))
        ranks = [
            child for child in psutil.Process(process.pid).children() if child.environ().get("RANK") == str(number % 2)
        ]
        ranks[0].kill()
        began = time.monotonic()
        process.communicate(timeout=300)
        waits.append(time.monotonic() - began)
        good += process.returncode == 0 and (run / "record.json").exists() and len(read_metrics(run)) == 3
    return good == 6, f"{good} of 6, to the run's end {max(waits):.0f} s at most after the kill"


@point(7, "20 planted NaN and Inf (loss, gradient, running statistics): none in a checkpoint, each replayable")
def not_finite(proof: Proof) -> Finding:
    good = 0
    clean = True
    real_prepare, real_forward = state.prepare, SeparableConv.forward
    for number in range(7):
        steps = sorted(proof.random.sample(range(1, 35), 3))
        wrong = dict(zip(steps, proof.random.choices(("loss", "gradient", "statistic"), k=3), strict=True))
        now = {"step": -1}

        def prepare(training: Any, pixels: Any, labels: Any, part: int, now: Any = now) -> Any:
            now["step"] = training.step
            return real_prepare(training, pixels, labels, part)

        def forward(self: Any, grid: Any, now: Any = now, wrong: Any = wrong) -> Any:
            kind = wrong.get(now["step"]) if self.training else None
            out = real_forward(self, grid)
            if kind == "gradient":
                out.register_hook(lambda gradient: gradient * float("inf"))
            elif kind == "statistic":
                self.norm.running_var.data.fill_(float("inf"))
            return out * float("nan") if kind == "loss" else out

        state.prepare, SeparableConv.forward = prepare, forward  # type: ignore[assignment, method-assign]
        try:
            run = atnet.train(
                proof.recipe("spoilt", save_minutes=0.0, keep=100), out=proof.folder / f"nan-{number}"
            ).folder
            for path in checkpoints(run):
                networks = torch.load(path)["networks"]
                clean &= all(bool(torch.isfinite(t).all()) for one in networks.values() for t in one.values())
            for step in steps:
                found = replay(run, step)
                good += found.fault.startswith(
                    {"loss": "the loss", "gradient": "the gradient"}.get(wrong[step], "the sum")
                )
        finally:
            state.prepare, SeparableConv.forward = real_prepare, real_forward  # type: ignore[method-assign]
        shutil.rmtree(run)
    return good == 21 and clean, f"{good} of 21 replayed, checkpoints clean: {clean}"


@point(8, "two runs of one seed: 100 equal losses; two ranks and one: within 1e-3 after 100 steps")
def repeated(proof: Proof) -> Finding:
    for name in ("one", "again"):
        proof.run(name, epochs=9)
    same = sum(a == b for a, b in zip(proof.losses("one").values(), proof.losses("again").values(), strict=True))
    process = torchrun(proof, "pair", "nowhere", "SIGTERM", 1, epochs=9)
    said, _ = process.communicate()
    if process.returncode:
        return False, said[-300:]
    one, pair = proof.losses("one"), proof.losses_close("pair")
    apart = max(abs(one[step] - pair[step]) / one[step] for step in range(100))
    return same >= 100 and apart < 1e-3, f"{same} equal losses; two ranks apart by {apart:.1e} relative"


@point(9, "two ranks of one thread reach 0.9 of the images/s of one process with two threads")
def speed(proof: Proof) -> Finding:
    options = {"model": "xxxs", "epochs": 2, "batch": 64, "save_minutes": 10.0}
    options |= {"data": proof.options["data"] | {"size": 128, "workers": 1, "cache": "ram"}}
    ratios = []
    for number in range(3):
        proof.run(f"threads-{number}", **options, threads=2)
        torchrun(proof, f"pair-{number}", "nowhere", "SIGTERM", 1, **options, threads=1).communicate()
        speeds = [
            max(float(row["images_per_s"]) for row in read_metrics(proof.folder / f"{name}-{number}"))
            for name in ("threads", "pair")
        ]
        ratios.append(speeds[1] / speeds[0])
    return statistics.median(ratios) >= 0.9, f"ratios {', '.join(f'{ratio:.2f}' for ratio in ratios)}"


@point(10, "SIGKILL at a random moment, then a disk that takes no checkpoint, two loader processes: bitwise, 30 times")
def kills_and_full_disks(proof: Proof) -> Finding:
    good = lines = 0
    for number in range(30):
        name = f"worst-{number}"
        process = proof.start(name, "nowhere", save_minutes=0.0)
        wait_for(lambda name=name: (proof.folder / name).exists(), process)
        time.sleep(proof.random.uniform(0, proof.seconds))
        process.kill()
        process.wait()
        full = subprocess.run(
            [sys.executable, *proof.victim(name, "nowhere", "SIGKILL", 1, save_minutes=0.0)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=proof.folder,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
        )  # fmt: skip
        lines += full.returncode == 2 and "cannot be written" in full.stdout and "Traceback" not in full.stdout
        good += proof.same(proof.run(name, save_minutes=0.0))
        proof.losses(name)
    return good == lines == 30, f"{good} of 30 the same, {lines} of 30 full disks one line"


def main(photos: Path, numbers: list[int]) -> None:
    rows = []
    logging.getLogger("atnet").setLevel(logging.CRITICAL)  # the damage that it finds is what it is shown
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        proof = Proof(photos, Path(name))
        for number in numbers or sorted(POINTS):
            claim, prove = POINTS[number]
            began = time.monotonic()
            try:
                fine, found = prove(proof)
            except AtnetError as error:
                fine, found = False, str(error)
            rows.append(fine)
            print(
                f"| {number} | {claim} | {found} | {'yes' if fine else 'NO'} | {time.monotonic() - began:.0f} s |",
                flush=True,
            )
    sys.exit(0 if all(rows) else 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), [int(word) for word in sys.argv[2:]])
