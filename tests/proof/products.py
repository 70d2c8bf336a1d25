"""`make proof-products`: how fast the matrix products of S's training step run, beside the same products alone.

Torch's profiler gives the time and the operations of each shape within the step, at the precision that `auto` takes
here; the same shapes are then run by themselves. Convolutions, the 1 x 1 ones among them, are not counted.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from atnet.config import make_config
from atnet.training.state import State, train_step

MODEL, SIZE, BATCH, STEPS, LEAST_SHARE = "s", 128, 32, 3, 0.5
PRODUCTS: dict[str, Callable[..., torch.Tensor]] = {
    "aten::mm": torch.mm,
    "aten::bmm": torch.bmm,
    "aten::addmm": lambda bias, left, right: torch.mm(left, right),
    "aten::baddbmm": lambda bias, left, right: torch.bmm(left, right),
}


def in_step() -> tuple[dict[tuple[str, str], tuple[list[list[int]], float, float]], torch.dtype]:
    """(operation, shapes): the shapes, operations and seconds of a step, of every matrix product; its precision."""
    config = make_config(
        "recipes/imagenette.yaml", model=MODEL, batch=BATCH, data={"source": "digits", "size": SIZE, "cache": "none"}
    )
    state = State(config)
    state.train_mode()
    print(f"{MODEL}, {SIZE} px, batch {BATCH}, {torch.get_num_threads()} threads, {'bf16' if state.bf16 else 'fp32'}")
    pixels = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.arange(BATCH) % len(state.info.classes)

    def step() -> None:
        train_step(state, pixels, labels)
        state.step += 1

    for _ in range(STEPS):
        step()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True) as profiled:
        for _ in range(STEPS):
            step()
    products = {
        (event.key, str(event.input_shapes)): (
            [shape for shape in event.input_shapes if shape],
            event.flops / STEPS,
            event.self_cpu_time_total / 1e6 / STEPS,
        )
        for event in profiled.key_averages(group_by_input_shape=True)
        if event.key in PRODUCTS
    }
    return products, torch.bfloat16 if state.bf16 else torch.float32


def alone(name: str, shapes: list[list[int]], dtype: torch.dtype) -> float:
    """Seconds that one such product takes by itself, the median of at least nine and of half a second."""
    tensors = [torch.randn(shape).to(dtype) for shape in shapes]
    times: list[float] = []
    while len(times) < 9 or sum(times) < 0.5:
        began = time.perf_counter()
        PRODUCTS[name](*tensors)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    products, dtype = in_step()
    counted = there = here = 0.0
    all_operations = sum(operations for _, operations, _ in products.values())
    for (name, _), (shapes, operations, seconds) in sorted(products.items(), key=lambda item: -item[1][1]):
        if operations < all_operations / 200:
            continue
        left, right = shapes[-2:]
        once = alone(name, shapes, dtype)
        times = operations / (2 * left[-2] * left[-1] * right[-1] * (left[0] if len(left) == 3 else 1))
        counted, there, here = counted + operations, there + seconds, here + once * times
        print(
            f"{left} x {right}, {round(times)} a step: {operations / seconds / 1e9:.0f} GFLOP/s, "
            f"alone {operations / times / once / 1e9:.0f}"
        )
    print(
        f"{counted / 1e9:.0f} of {all_operations / 1e9:.0f} GFLOP of products a step: "
        f"{counted / there / 1e9:.0f} GFLOP/s, alone {counted / here / 1e9:.0f}, share {here / there:.2f}"
    )
    if here / there < LEAST_SHARE:
        sys.exit(f"less than {LEAST_SHARE} of what the same products reach alone")


if __name__ == "__main__":
    main()
