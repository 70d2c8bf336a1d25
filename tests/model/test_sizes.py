import pytest
import torch

from atnet import create_model
from atnet.model.sizes import SIZES

PUBLISHED = {
    "xxxs": 1.7,
    "xxs": 3.0,
    "xs": 4.0,
    "s": 25.0,
    "l": 55.0,
    "seed_xxxs": 1.7,
    "seed_xxs": 3.0,
    "seed_s": 25.0,
}
COUNTED = {
    "xxxs": 1_689_184,
    "xxs": 2_941_536,
    "xs": 3_942_592,
    "s": 24_643_980,
    "l": 54_674_772,
    "seed_xxxs": 1_710_240,
    "seed_xxs": 2_976_500,
    "seed_s": 25_467_272,
    "author_2023": 17_834_984,
}


def parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in create_model(name).parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_at_1000_classes_are_the_published_ones_within_two_percent(name):
    assert parameters(name) / 1e6 == pytest.approx(PUBLISHED[name], rel=0.02)


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_pinned(name):
    assert parameters(name) == COUNTED[name]


@pytest.mark.parametrize(
    ("name", "layout"),
    [("seed_xxxs", (5, 7, 8)), ("seed_xxs", (6, 4, 9)), ("seed_s", (10, 11, 12)), ("author_2023", (5, 5, 8))],
)
def test_the_authors_layouts_are_as_published(name, layout):
    size = SIZES[name]
    assert (size.conv_mix, size.trans_mix, size.patch) == layout
    assert (size.stem, size.squeeze, size.conv_dim == size.dim) == ("patch", 1, True)


def test_author_2023_is_512_wide_with_kernel_7():
    assert (SIZES["author_2023"].dim, SIZES["author_2023"].kernel) == (512, 7)
