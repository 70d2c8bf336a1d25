"""python stalled.py RECIPE OUT PROCESS STEP: trains, but that process waits for the data of that step without end.

Run by torchrun. STALLED is left in the working folder when it does.
"""

import os
import sys
import time
from pathlib import Path

import atnet
from atnet.errors import Stopped
from atnet.training import loop

recipe, out, process, step = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
batches_of = loop.batches_of


def stalling(loader):
    for number, batch in enumerate(batches_of(loader)):
        if number == step and int(os.environ["RANK"]) == process:
            Path("STALLED").touch()
            while True:
                time.sleep(60)
        yield batch


if __name__ == "__main__":
    Path(f"PID-{os.environ['RANK']}").write_text(str(os.getpid()))
    loop.batches_of = stalling
    try:
        atnet.train(recipe, out=out)
    except Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(stopped.exit_code)
