"""python stalled.py RECIPE OUT PROCESS STEP|evaluation|start: trains, but there that process waits without end.

Run by torchrun. STALLED is left in the working folder when it does. At the start it waits twice as long as a step may.
"""

import datetime
import os
import sys
import time
from pathlib import Path

import atnet
from atnet.errors import Stopped
from atnet.training import distributed, loop

recipe, out, process, where = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
training_batches, score_together, new_run = loop.training_batches, loop.score_together, loop.new_run


def stall():
    if int(os.environ["RANK"]) == process:
        Path("STALLED").touch()
        while True:
            time.sleep(60)


def stalling(*asked):
    for number, batch in enumerate(training_batches(*asked)):
        if str(number) == where:
            stall()
        yield batch


def scoring(*given, **named):
    if where == "evaluation":
        stall()
    return score_together(*given, **named)


def starting(*given):
    if where == "start" and int(os.environ["RANK"]) == process:
        Path("STALLED").touch()
        time.sleep(10)
    return new_run(*given)


if __name__ == "__main__":
    Path(f"PID-{os.environ['RANK']}").write_text(str(os.getpid()))
    loop.training_batches, loop.score_together, loop.new_run = stalling, scoring, starting
    if where == "start":
        distributed.STEP = datetime.timedelta(seconds=5)
    try:
        atnet.train(recipe, out=out)
    except Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(stopped.exit_code)
