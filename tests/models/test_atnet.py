import copy
import math
import pickle
from functools import partial

import pytest
import timm
import torch
from timm.models.cait import ClassAttn
from timm.models.vision_transformer import Block

from atnet import create_model
from atnet.models.atnet import ATNet, ClassAttention, ConvMixerBlock, TransMix
from atnet.models.sizes import SIZES

LAYOUT = {
    "depths": (1, 1, 1), "dims": (8, 16, 32), "strides": (4, 2, 2), "attention_depths": (0, 2), "kernel": 5, "heads": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.slow
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
    ("convmixer", "strides"),
    [(True, (7, 1, 1)), (True, (9, 1, 2)), (False, (4, 1, 1)), (False, (2, 2, 1)), (False, (8, 2, 2))],
)
@pytest.mark.parametrize("sides", [(45, 100), (5, 3)])
def test_any_strides_take_any_sides(convmixer, strides, sides):
    model = ATNet(**{**LAYOUT, "strides": strides}, convmixer=convmixer, num_classes=3).eval()
    tokens = model.forward_features(torch.randn(1, 3, *sides))
    rows, columns = (-(-side // math.prod(strides)) for side in sides)
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
    position = model.stages[2].position
    grid = torch.ones(1, 32, 8, 8)
    assert (position(grid)[..., :-1, :] - position(grid)[..., 1:, :]).abs().max() > 1e-3


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


def test_the_published_block_is_convmixers():
    theirs = timm.create_model("convmixer_768_32", num_classes=0).blocks[0].eval()
    ours = ConvMixerBlock(768, 7, 0.0).eval()
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
    model = ATNet(**{**LAYOUT, "attention_depths": (2 - count, count)}, registers=3)
    assert [layer.prefix for layer in model.encoder] == [0] * (2 - count) + [4] * count


def test_three_feature_levels_for_detection():
    model = timm.create_model("atnet_xxxs", features_only=True)
    levels = model(torch.randn(1, 3, 160, 288))
    assert model.feature_info.reduction() == [4, 8, 16]
    assert [level.shape[1] for level in levels] == model.feature_info.channels() == [48, 96, 192]
    assert [tuple(level.shape[2:]) for level in levels] == [(40, 72), (20, 36), (10, 18)]
    sum(level.square().mean() for level in levels).backward()
    assert unused(model) == []


def unused(model):
    """Parameters that get no gradient, or one of zeros."""
    return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("last", [0, 1, 2])
def test_levels_of_features_are_the_whole_networks_and_leave_no_parameter_unused(count, last):
    whole = ATNet(**{**LAYOUT, "attention_depths": (2 - count, count)}, num_classes=5).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = whole.forward_intermediates(images, indices=[last], intermediates_only=True)
    pruned = copy.deepcopy(whole)
    taken = pruned.prune_intermediate_layers([last], prune_norm=True)
    found = pruned.forward_intermediates(images, indices=taken, intermediates_only=True)
    assert torch.equal(found[0], expected[0])
    found[0].square().mean().backward()
    assert unused(pruned) == []
    assert pruned(images).shape[-1] == whole(images).shape[-1] or last < 2 or pruned.num_classes == 0
    if pruned.cls_token is None:
        with pytest.raises(ValueError, match="'avg'"):
            pruned.reset_classifier(3, "token")
    pruned.reset_classifier(3, "avg")
    assert pruned(images).shape == (2, 3)


@pytest.mark.parametrize("pool", ["token", "avg", "both"])
@pytest.mark.parametrize(
    ("name", "heads"), [("xxxs", False), ("xxxs_star", True), ("xxxs+attention_depths=1,2", False)]
)
def test_every_pooling_uses_every_parameter(name, heads, pool):
    model = create_model(name, num_classes=4, global_pool="both")
    model.reset_classifier(4, pool)
    model(torch.randn(3, 3, 64, 64)).square().mean().backward()
    assert unused(model) == []


def test_a_class_token_that_reads_no_patch_is_refused():
    with pytest.raises(ValueError, match="'both'"):
        ATNet(**{**LAYOUT, "attention_depths": (0, 0)}, global_pool="token")


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
    everything = tokens.mean(1)  # class attention changes no patch token, so "avg" reads those that it changes too
    expected = {"token": token, "avg": everything, "both": (token + mean) / 2}[pool]
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), expected)


def test_avg_is_of_patches_alone_where_they_attend_too():
    model = ATNet(**{**LAYOUT, "attention_depths": (2, 0)}, num_classes=5, global_pool="avg").eval()
    tokens = model.forward_features(torch.randn(2, 3, 64, 64))
    expected = tokens[:, model.num_prefix_tokens :].mean(1)
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), expected)


@pytest.mark.parametrize("name", ["xxxs", "xxxs_star", "seed_xxxs"])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_can_be_saved_and_answers_alike(name, form, training, tmp_path):
    model = create_model(name, num_classes=3).train(training).to(memory_format=form)
    images = torch.randn(2, 3, 32, 32).to(memory_format=form)
    torch.jit.trace(model, images).save(tmp_path / "traced.pt")  # which traces twice, and compares
    expected = model(images)
    torch.testing.assert_close(torch.jit.load(tmp_path / "traced.pt")(images), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(images), expected)


@pytest.mark.parametrize("training", [True, False])
def test_it_can_be_exported_and_traced_by_symbols(training):
    model = create_model("xxxs", num_classes=3).train(training).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    expected = model(images)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), expected, rtol=1e-4, atol=1e-4)
    exported = torch.export.export(model, (images,), strict=False).module()
    torch.testing.assert_close(exported(images), expected, rtol=1e-4, atol=1e-4)


def test_no_registers_is_a_size_too():
    model = ATNet(**LAYOUT, num_classes=5, registers=0)
    assert model.num_prefix_tokens == 1
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 5)


def test_groups_follow_the_images_way():
    from timm.models._manipulate import group_parameters

    model = ATNet(**LAYOUT)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    way = ["stem.0.conv.weight", "stages.0.blocks.0.depthwise.weight", "stages.1.downsample.conv.weight",
           "stages.1.blocks.0.depthwise.weight", "stages.2.position.weight", "stages.2.blocks.0.depthwise.weight",
           "cls_token", "encoder.0.norm1.weight", "encoder.1.norm1.weight", "norm.weight", "head.weight"]  # fmt: skip
    assert [groups[name] for name in way] == list(range(11))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "dim=32 is not divisible by heads=3: try heads=2 or dim=33"),
        ({"kernel": 4}, "kernel=4 is even"),
        ({"strides": (6, 2, 2)}, "stem of stride 6, no power of two"),
        ({"dims": (9, 16, 32)}, "a stem of stride 4 halves 9"),
        ({"depths": (1, 1)}, "three numbers each"),
        ({"global_pool": "max"}, "global_pool='max' is unknown"),
    ],
)
def test_layouts_that_cannot_be_built_say_why(change, message):
    with pytest.raises(ValueError, match=message):
        ATNet(**{**LAYOUT, **change})


def test_an_unknown_argument_is_not_swallowed():
    with pytest.raises(TypeError, match="depthss"):
        create_model("xxxs", depthss=3)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="did you mean"):
        create_model("mobilenetv3_smal_100")


def test_sizes_take_changes_of_their_layout():
    assert create_model("xxxs", registers=8, kernel=7).reg_token.shape == (1, 8, 192)
