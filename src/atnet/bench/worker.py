"""One network in a process of its own, timed when asked: what `atnet bench` runs side by side.

`python -m atnet.bench.worker` reads a JSON object a line. The first says what to build: engine, model, size,
threads, recipe, precision, device (cpu if it is not there), began (time at its start); of these ONNX needs threads and
began, and onnx, the file.
Each after it, {"batch": images, "seconds": least time}, is answered with the seconds of each run, of the first
answer since began, and the peak of memory, MB.
Torch is imported by the engines that need it only: memory and time to the first answer are an engine's own.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from atnet.bench.timing import timer
from atnet.system import process_peak_mb

WARM_RUNS, WARM_RUNS_OF_GPU, LEAST_RUNS = 2, 20, 3
Step = Callable[[], Any]


def main() -> None:
    case = json.loads(sys.stdin.readline())
    device = case.setdefault("device", "cpu")
    step_of = ENGINES[case["engine"]](case)
    timed, peak_mb = timer(device), _peak_mb_of(device)
    steps: dict[int, Step] = {}
    first = 0.0
    for line in sys.stdin:
        order = json.loads(line)
        batch = order["batch"]
        if batch not in steps:
            steps[batch] = step_of(batch)
            timed(steps[batch])
            first = first or time.time() - case["began"]
            for _ in range((WARM_RUNS if device == "cpu" else WARM_RUNS_OF_GPU) - 1):
                timed(steps[batch])
        times: list[float] = []
        until = time.perf_counter() + order["seconds"]
        while len(times) < LEAST_RUNS or time.perf_counter() < until:
            times.append(timed(steps[batch]))
        print(json.dumps({"times": times, "first": first, "peak_mb": peak_mb()}), flush=True)


def _peak_mb_of(device: str) -> Callable[[], float]:
    """What says the most memory that was held: the process's on a CPU, else the device's."""
    if device == "cpu":
        return process_peak_mb
    import torch

    from atnet.run.record import peak_memory_mb

    return lambda: peak_memory_mb(torch.device(device))


def _onnx(case: dict[str, Any]) -> Callable[[int], Step]:
    """ONNX Runtime in fp32 with its own optimisations, BatchNorm folded among them."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case["threads"]
    session = onnxruntime.InferenceSession(case["onnx"], options, providers=["CPUExecutionProvider"])
    [entry] = session.get_inputs()

    def step_of(batch: int) -> Step:
        images = np.random.default_rng(0).standard_normal((batch, *entry.shape[1:]), np.float32)
        return lambda: session.run(None, {entry.name: images})

    return step_of


def _torch(case: dict[str, Any]) -> Callable[[int], Step]:
    """Torch, channels-last, branches of reparameterisable networks merged; compiled if asked for.

    A CPU computes in fp32, another device in the precision.
    """
    import torch

    from atnet.device import cuda_settings, in_precision, multiplies_in_bf16, pick_device
    from atnet.models.load import create_deployed

    torch.set_num_threads(case["threads"])
    device = pick_device(case["device"])
    bf16 = device.type != "cpu" and multiplies_in_bf16(case["precision"], device)
    model = create_deployed(case["model"], size=case["size"]).to(device).to(memory_format=torch.channels_last)
    run: Callable[[torch.Tensor], torch.Tensor] = model
    if case["engine"] == "compile":
        run = torch.compile(model, mode="max-autotune" if device.type == "cuda" else None)

    def step_of(batch: int) -> Step:
        images = torch.randn(batch, 3, case["size"], case["size"], device=device)
        images = images.to(memory_format=torch.channels_last)

        def step() -> None:
            fast = cuda_settings(device, deterministic=False, fp32=case["precision"] == "fp32")
            with fast, torch.inference_mode(), in_precision(device, bf16):
                run(images)

        return step

    return step_of


def _train(case: dict[str, Any]) -> Callable[[int], Step]:
    """A step of `atnet train` without its loader: normalising, forward, backward, clipping, optimizers, average."""
    import torch

    from atnet.config import make_config
    from atnet.training.state import State, train_step

    def step_of(batch: int) -> Step:
        data = {"source": "digits", "size": case["size"], "cache": "none"}
        options = {name: case[name] for name in ("model", "threads", "precision", "device")}
        compiled = case["engine"] == "train-compile"
        config = make_config(case["recipe"], **options, batch=batch, compile=compiled, data=data)
        state = State(config)
        state.train_mode()
        pixels = torch.randint(0, 256, (batch, 3, case["size"], case["size"]), dtype=torch.uint8)
        labels = torch.arange(batch) % len(state.info.classes)

        def step() -> None:
            train_step(state, pixels, labels)
            state.step += 1

        return step

    return step_of


ENGINES: dict[str, Callable[[dict[str, Any]], Callable[[int], Step]]] = {
    "onnx": _onnx,
    "eager": _torch,
    "compile": _torch,
    "train": _train,
    "train-compile": _train,
}

if __name__ == "__main__":
    main()
