from functools import partial

import pytest
import timm
import torch
from timm.models.cait import ClassAttn
from timm.models.vision_transformer import Block

from atnet import create_model
from atnet.model.atnet import ATNet
from atnet.model.blocks import ClassAttention, ConvMix, TransMix
from atnet.model.sizes import SIZES

LAYOUT = {"conv_mix": 2, "trans_mix": 2, "patch": 8, "kernel": 5, "conv_dim": 16, "dim": 32, "heads": 4}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(("sides", "channels", "classes"), [((224, 224), 1, 10), ((160, 288), 10, 1)])
def test_every_size_runs_and_every_parameter_gets_a_gradient(name, sides, channels, classes):
    model = create_model(name, in_chans=channels, num_classes=classes)
    logits = model(torch.randn(2, channels, *sides))
    assert logits.shape == (2, classes)
    logits.square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


@pytest.mark.parametrize(
    ("stem", "patch"), [("patch", 7), ("patch", 9), ("patch", 12), ("overlap", 4), ("overlap", 16)]
)
@pytest.mark.parametrize("sides", [(45, 100), (5, 3)])
def test_any_patch_takes_any_sides(stem, patch, sides):
    model = ATNet(**{**LAYOUT, "patch": patch, "conv_dim": 32}, stem=stem, squeeze=1, num_classes=3).eval()
    tokens = model.forward_features(torch.randn(1, 3, *sides))
    rows, columns = (-(-side // patch) for side in sides)
    assert tokens.shape == (1, model.num_prefix_tokens + rows * columns, 32)


def test_patch_9_reads_every_pixel_of_224():
    model = create_model("seed_xxs", num_classes=2).eval()
    image = torch.randn(1, 3, 224, 224, requires_grad=True)
    model(image)[0, 0].backward()
    assert (image.grad.abs().sum(1) > 0).all()


def test_batch_neighbours_do_not_change_a_prediction():
    model = ATNet(**LAYOUT, num_classes=5).eval()
    images = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]), rtol=1e-5, atol=1e-6)


def test_where_a_patch_is_matters_to_the_encoder():
    model = ATNet(**LAYOUT, num_classes=5).eval()
    grid = torch.randn(1, 16, 8, 8)
    moved = model.squeeze(grid.flip(3)).flip(3)
    assert (model.squeeze(grid) - moved).abs().max() > 1e-3


def test_checkpointing_changes_no_gradient():
    plain = ATNet(**LAYOUT, num_classes=5, drop_path_rate=0.3)
    saving = ATNet(**LAYOUT, num_classes=5, drop_path_rate=0.3)
    saving.load_state_dict(plain.state_dict())
    saving.set_grad_checkpointing()
    images = torch.randn(4, 3, 64, 64)
    for model in (plain, saving):
        torch.manual_seed(1)
        model(images).square().sum().backward()
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6, msg=name)


def test_conv_mix_is_convmixers_block():
    theirs = timm.create_model("convmixer_768_32", num_classes=0).blocks[0].eval()
    ours = ConvMix(768, 7, 0.0, norm_first=False).eval()
    depthwise, _, norm1 = theirs[0].fn
    pairs = (
        (ours.depthwise, depthwise),
        (ours.norm1, norm1),
        (ours.pointwise, theirs[1]),
        (ours.norm2, theirs[3]),
    )
    for own, other in pairs:
        own.load_state_dict(other.state_dict())
        if isinstance(own, torch.nn.BatchNorm2d):
            for norm in (own, other):
                norm.running_mean.fill_(0.1), norm.running_var.fill_(0.5)
    theirs[0].fn[1] = theirs[2] = torch.nn.GELU()  # this timm model was trained with ReLU
    grid = torch.randn(2, 768, 9, 9)
    torch.testing.assert_close(ours(grid), theirs(grid))


def test_trans_mix_is_timms_encoder_block():
    theirs = Block(32, 4, qkv_bias=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6)).eval()
    ours = TransMix(32, 4, 4.0, 0.0).eval()
    ours.load_state_dict({n.replace("attn.", "attention."): v for n, v in theirs.state_dict().items()})
    tokens = torch.randn(2, 10, 32)
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-4, atol=1e-5)


def test_class_attention_of_one_token_is_caits():
    theirs = ClassAttn(32, 4, qkv_bias=True).eval()
    ours = ClassAttention(32, 4, prefix=1).eval()
    state = theirs.state_dict()
    for part in ("weight", "bias"):
        state[f"kv.{part}"] = torch.cat([state.pop(f"k.{part}"), state.pop(f"v.{part}")])
    ours.load_state_dict(state)
    tokens = torch.randn(2, 10, 32)
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-4, atol=1e-5)


def test_a_class_attention_layer_updates_the_prefix_alone_and_reads_every_token():
    layer = TransMix(32, 4, 4.0, 0.0, prefix=3).eval()
    tokens = torch.randn(2, 10, 32, requires_grad=True)
    after = layer(tokens)
    assert after.shape == tokens.shape
    assert torch.equal(after[:, 3:], tokens[:, 3:])
    after[:, :3].square().sum().backward()
    assert (tokens.grad.abs().sum(2) > 0).all()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_last_layers_are_those_of_class_attention(count):
    model = ATNet(**LAYOUT, class_attention=count, registers=3)
    assert [layer.prefix for layer in model.trans_mix] == [0] * (2 - count) + [4] * count


def test_three_feature_levels_for_detection():
    model = timm.create_model("atnet_xxxs", features_only=True)
    levels = model(torch.randn(1, 3, 160, 288))
    assert model.feature_info.reduction() == [4, 8, 16]
    assert [level.shape[1] for level in levels] == model.feature_info.channels() == [48, 96, 192]
    assert [tuple(level.shape[2:]) for level in levels] == [(40, 72), (20, 36), (10, 18)]
    sum(level.square().mean() for level in levels).backward()
    without = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without <= {"cls_token", "reg_token", "trans_mix", "norm"}, "class attention changes no patch token"


def test_prefix_tokens_come_with_the_last_level():
    model = ATNet(**LAYOUT, num_classes=5, registers=3).eval()
    (grid, prefix), = model.forward_intermediates(
        torch.randn(1, 3, 64, 64), indices=1, return_prefix_tokens=True, norm=True, intermediates_only=True
    )  # fmt: skip
    assert (tuple(grid.shape), tuple(prefix.shape)) == ((1, 32, 4, 4), (1, 4, 32))


@pytest.mark.parametrize("pool", ["token", "avg", "both"])
def test_the_head_reads_what_global_pool_says(pool):
    model = ATNet(**LAYOUT, num_classes=5, global_pool=pool).eval()
    tokens = model.forward_features(torch.randn(2, 3, 64, 64))
    token, mean = tokens[:, 0], tokens[:, model.num_prefix_tokens :].mean(1)
    expected = {"token": token, "avg": mean, "both": (token + mean) / 2}[pool]
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), expected)


def test_no_registers_is_a_size_too():
    model = ATNet(**LAYOUT, num_classes=5, registers=0)
    assert model.num_prefix_tokens == 1
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 5)


def test_groups_follow_the_pictures_way():
    from timm.models._manipulate import group_parameters

    model = ATNet(**LAYOUT, late_mix=1)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    way = ["stem.0.conv.weight", "conv_mix.0.depthwise.weight", "conv_mix.1.depthwise.weight",
           "squeeze.position.weight", "late_mix.0.depthwise.weight", "cls_token", "trans_mix.0.norm1.weight",
           "trans_mix.1.norm1.weight", "norm.weight", "head.weight"]  # fmt: skip
    assert [groups[name] for name in way] == list(range(10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "dim=32 is not divisible by heads=3: try heads=2 or dim=33"),
        ({"kernel": 4}, "kernel=4 is even"),
        ({"patch": 12}, "patch=12 is no power of two"),
        ({"class_attention": 3}, "class_attention=3 of trans_mix=2 layers"),
        ({"stem": "other"}, "stem='other' is unknown"),
        ({"global_pool": "max"}, "global_pool='max' is unknown"),
    ],
)
def test_layouts_that_cannot_be_built_say_why(change, message):
    with pytest.raises(ValueError, match=message):
        ATNet(**{**LAYOUT, **change})


def test_an_unknown_argument_is_not_swallowed():
    with pytest.raises(TypeError, match="conv_mixx"):
        create_model("xxxs", conv_mixx=3)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="did you mean"):
        create_model("mobilenetv3_smal_100")


def test_sizes_take_changes_of_their_layout():
    assert create_model("xxxs", registers=8, kernel=5).reg_token.shape == (1, 8, 192)
