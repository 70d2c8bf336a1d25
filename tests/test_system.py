import subprocess
import sys

import numpy as np

from atnet.system import process_peak_mb

SAY = "from atnet.system import process_peak_mb; print(process_peak_mb())"


def test_the_peak_of_memory_is_the_processs_own_not_that_of_the_one_that_started_it():
    ones = np.ones(60_000_000)  # 480 MB
    assert process_peak_mb() > ones.nbytes / 1e6
    child = float(subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True, check=True).stdout)
    assert 5 < child < 300
