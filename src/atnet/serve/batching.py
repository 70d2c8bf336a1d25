"""Requests that arrive together, answered by one run of the network."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Run = Callable[[list[Pixels]], NDArray[np.float32]]


class Batches:
    """Collects images and runs them together, in a thread of its own, while the next ones collect.

    run: from images to logits, a row each.  most: images in a batch.
    wait: seconds that an image waits for others, at most, and only if others are expected.
    expected: how many images are on their way or here.  ran: takes the size of each batch.
    """

    def __init__(
        self, run: Run, *, most: int, wait: float, expected: Callable[[], int], ran: Callable[[int], None]
    ) -> None:
        self._run, self._most, self._wait = run, most, wait
        self._expected, self._ran = expected, ran
        self._here: asyncio.Queue[tuple[Pixels, asyncio.Future[NDArray[np.float32]]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "network")
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to run what is here."""
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Ends; what is still here is not answered."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._thread.shutdown()

    async def answer(self, pixels: Pixels) -> NDArray[np.float32]:
        """The image's logits. Raises what the network raises."""
        future: asyncio.Future[NDArray[np.float32]] = asyncio.get_running_loop().create_future()
        self._here.put_nowait((pixels, future))
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._here.get()]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._wait):
                    while len(batch) < min(self._most, self._expected()):
                        batch.append(await self._here.get())
            while len(batch) < self._most and not self._here.empty():
                batch.append(self._here.get_nowait())
            batch = [one for one in batch if not one[1].done()]  # the others were given up
            if not batch:
                continue
            self._ran(len(batch))
            try:
                logits = await loop.run_in_executor(self._thread, self._run, [pixels for pixels, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for row, (_, future) in zip(logits, batch, strict=True):
                if not future.done():
                    future.set_result(row)
