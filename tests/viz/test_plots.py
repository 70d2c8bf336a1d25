import tracemalloc

import numpy as np
import pytest
from PIL import Image

from atnet.viz.plots import draw_confusion


@pytest.mark.parametrize("classes", [3, 45, 3001])
def test_a_confusion_matrix_of_any_size_is_drawn_in_little_memory(tmp_path, classes):
    counts = np.zeros((classes, classes), np.int64)
    counts[np.arange(classes), np.arange(classes)] = 1
    tracemalloc.start()
    draw_confusion(counts, [f"class {i}" for i in range(classes)], tmp_path / "c.png")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100_000_000 + counts.nbytes
    with Image.open(tmp_path / "c.png") as drawn:
        width, height = drawn.size
        inside = drawn.convert("L").crop((width // 5, height // 5, width * 7 // 10, height * 4 // 5))
        dark = np.asarray(inside) < 230
    rows, columns = np.nonzero(dark)
    assert np.corrcoef(rows, columns)[0, 1] > 0.5  # the diagonal, dark, from the upper left
