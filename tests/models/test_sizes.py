import pytest
import torch

from atnet import create_model
from atnet.cli import main
from atnet.errors import ConfigError
from atnet.models.layout import Size
from atnet.models.load import architecture
from atnet.models.sizes import SIZES, layout_of, split_name

PUBLISHED = {
    "xxxs": 1.7,
    "xxs": 3.0,
    "xs": 4.0,
    "s": 25.0,
    "s_star": 25.5,
    "l": 55.0,
    "seed_xxxs": 1.7,
    "seed_xxs": 3.0,
    "seed_s": 25.0,
}
COUNTED = {
    "xxxs": 1_704_640,
    "xxxs_star": 1_742_368,
    "xxs": 3_018_464,
    "xxs_star": 3_085_152,
    "xs": 3_985_168,
    "xs_star": 4_069_408,
    "s": 24_765_320,
    "s_star": 25_029_768,
    "l": 55_131_120,
    "l_star": 55_543_600,
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
    blocks, layers, patch = layout
    assert (size.depths, size.attention_depths, size.strides) == ((0, blocks, 0), (layers, 0), (patch, 1, 1))
    assert size.convmixer
    assert len(set(size.dims)) == 1


def test_author_2023_is_512_wide_with_kernel_7():
    assert (SIZES["author_2023"].dims[2], SIZES["author_2023"].kernel) == (512, 7)


def test_a_name_can_change_a_sizes_layout():
    named = create_model("xxxs+kernel=7+registers=8+depths=1,2,3+mlp_ratio=3")
    given = create_model("xxxs", kernel=7, registers=8, depths=(1, 2, 3), mlp_ratio=3.0)
    shapes = {name: tensor.shape for name, tensor in given.state_dict().items()}
    assert {name: tensor.shape for name, tensor in named.state_dict().items()} == shapes
    assert architecture("xxxs+kernel=7") == "atnet_xxxs+kernel=7"
    assert architecture("s*") == "atnet_s_star"
    assert layout_of("atnet_xs+strides=4,2,1").strides == (4, 2, 1)
    assert layout_of("resnet18") is None
    assert split_name("resnet18") == ("resnet18", {})


def test_a_layout_that_cannot_be_built_is_named(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["sizes", "xxxs+dims=48,96,200"])
    assert ended.value.code == 2
    assert "dim=200 is not divisible by heads=6" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18+kernel=5", "only AT-Net's own sizes take changes, and resnet18 is none"),
        ("xxxs+kernal=5", "'kernal=5' changes nothing of a layout; as xxxs.kernel=7: kernel"),
        ("xxxs+kernel", "'kernel' changes nothing of a layout"),
        ("xxxs+kernel=5.5", "kernel=5.5: no whole number from 0 to 4,096; xxxs has 5"),
        ("xxxs+depths=2,6,999999999", "no whole number from 0 to 256; xxxs has 2,6,11"),
        ("xxxs+convmixer=1", "neither true nor false"),
        ("xxxs+mlp_ratio=nan", "no number above 0"),
        ("xxxs+depths=2,6", "no 3 numbers"),
        ("xxxs+strides=4,2,0", "no whole number from 1 to 4,096"),
        ("xxxs+global_pool=foo", "none of token, avg, both"),
        ("xxxs+heads=0", "heads=0: no whole number from 1 to 4,096"),
        ("xxxs+pretrained=true", "'pretrained=true' changes nothing of a layout"),
    ],
)
def test_a_change_that_is_none_says_what_there_is(name, message):
    with pytest.raises(ConfigError, match=message.replace("+", ".")):
        architecture(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("xxxs+late_mix=9", {"depths": (2, 6, 9), "dims": (48, 96, 192)}),
        ("xxxs+early_mix=0+late_mix=0+trans_mix=3", {"depths": (0, 6, 0), "attention_depths": (1, 2)}),
        ("atnet_xs+squeeze=1", {"strides": (4, 2, 1), "dims": (48, 144, 288)}),
        ("xxxs+patch=4+early_mix=1", {"strides": (2, 2, 2), "dims": (24, 96, 192), "depths": (1, 6, 11)}),
        ("xxxs+patch=16", {"strides": (8, 2, 2), "dims": (96, 96, 192)}),
        ("xxxs+dim=96+heads=3+gate=false", {"dims": (48, 96, 96), "heads": 3}),
        ("seed_s+patch=14+conv_mix=2", {"strides": (14, 1, 1), "depths": (0, 2, 0), "convmixer": True}),
        (
            "xxxs+stem=patch+norm_first=false+residual=depthwise+early_mix=0+conv_dim=32",
            {"convmixer": True, "strides": (8, 1, 2), "dims": (32, 32, 192), "depths": (0, 6, 11)},
        ),
    ],
)
def test_names_of_version_0_1_mean_what_they_meant(name, expected):
    base, _ = split_name(name)
    size = SIZES[base.removeprefix("atnet_")]
    assert layout_of(name) == Size(**{field: getattr(size, field) for field in vars(size)} | expected)
    create_model(name, num_classes=2, device="meta")


@pytest.mark.parametrize("change", ["residual=depthwise", "qk_norm=true", "isolated=true", "conv_dim=32", "gate=true"])
def test_what_is_gone_is_named_with_the_version_that_has_it(change):
    with pytest.raises(ConfigError, match=rf"{change.split('=')[0]}.*gone.*0\.1|{change}.*use dims"):
        architecture(f"xxxs+{change}")
