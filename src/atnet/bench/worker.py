"""One network in a process of its own, timed when asked: what `atnet bench` runs side by side.

`python -m atnet.bench.worker` reads a JSON object a line. The first says what to build: engine, model, size,
threads, recipe, precision, began (time at its start); of these ONNX needs threads and began, and onnx, the file.
Each after it, {"batch": images, "seconds": least time}, is answered with the seconds of each run, of the first
answer since began, and the peak of memory, MB.
Torch is imported by the engines that need it only: memory and time to the first answer are an engine's own.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from atnet.system import process_peak_mb

WARM_RUNS, LEAST_RUNS = 2, 3
Step = Callable[[], Any]


def main() -> None:
    case = json.loads(sys.stdin.readline())
    step_of = ENGINES[case["engine"]](case)
    steps: dict[int, Step] = {}
    first = 0.0
    for line in sys.stdin:
        order = json.loads(line)
        batch = order["batch"]
        if batch not in steps:
            steps[batch] = step_of(batch)
            steps[batch]()
            first = first or time.time() - case["began"]
            for _ in range(WARM_RUNS - 1):
                steps[batch]()
        times: list[float] = []
        until = time.perf_counter() + order["seconds"]
        while len(times) < LEAST_RUNS or time.perf_counter() < until:
            began = time.perf_counter()
            steps[batch]()
            times.append(time.perf_counter() - began)
        print(json.dumps({"times": times, "first": first, "peak_mb": process_peak_mb()}), flush=True)


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
    """Torch in fp32, channels-last, branches of reparameterisable networks merged; compiled if asked for."""
    import torch

    from atnet.models.load import create_deployed

    torch.set_num_threads(case["threads"])
    model = create_deployed(case["model"], size=case["size"]).to(memory_format=torch.channels_last)
    run = torch.compile(model) if case["engine"] == "compile" else model

    def step_of(batch: int) -> Step:
        images = torch.randn(batch, 3, case["size"], case["size"]).to(memory_format=torch.channels_last)

        def step() -> None:
            with torch.inference_mode():
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
        options = {"model": case["model"], "batch": batch, "threads": case["threads"], "precision": case["precision"]}
        config = make_config(case["recipe"], **options, data=data)
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
}

if __name__ == "__main__":
    main()
