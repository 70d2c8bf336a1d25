import copy
import os
import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, DropPath, drop
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize, prune

from atnet import create_model
from atnet.models import ops
from atnet.models.atnet import ConvMix
from atnet.models.ops import (
    DepthwiseConv2d,
    NormRelu2d,
    _mixes,
    attend,
    has_kernel,
    kernels,
    mix,
    normalised,
    trains_faster_plain,
    with_kernels,
)

NOTHING = DropPath(0.0)
has_compiler = pytest.mark.skipif(kernels() is None, reason="no C compiler here")


@pytest.fixture
def images():
    torch.manual_seed(0)
    return lambda *shape: torch.randn(*shape).to(memory_format=torch.channels_last)


def gradients(module, grid, out_grad):
    """The output, and the gradients of the grid and of each parameter."""
    grid = grid.clone(memory_format=torch.preserve_format).requires_grad_()
    module.zero_grad()
    out = module(grid)
    out.backward(out_grad)
    return out.detach(), grid.grad, *(p.grad for p in module.parameters())


def with_threads(counts, compute):
    """What is computed with each number of threads."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in counts:
            torch.set_num_threads(threads)
            found.append(compute())
    finally:
        torch.set_num_threads(before)
    return found


@has_compiler
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("count", "channels", "height", "width", "kernel"),
    [(2, 96, 16, 16, 7), (19, 8, 3, 11, 5), (1, 40, 28, 5, 9), (3, 16, 2, 2, 7), (5, 24, 9, 8, 15)],
)
def test_the_kernel_agrees_with_torch_in_double(images, count, channels, height, width, kernel, bias):
    conv = DepthwiseConv2d(channels, kernel, bias=bias)
    grid, out_grad = images(count, channels, height, width), images(count, channels, height, width)
    assert has_kernel(grid, conv.weight)
    found = gradients(conv, grid, out_grad)
    expected = gradients(conv.double(), grid.double(), out_grad.double())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@has_compiler
def test_a_bf16_grid_has_fp32_gradients_as_exact_as_its_numbers(images):
    conv = DepthwiseConv2d(40, 7)
    with torch.no_grad():
        conv.weight.copy_(conv.weight.bfloat16())
    grid, out_grad = images(5, 40, 11, 6).bfloat16(), images(5, 40, 11, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(conv, grid, out_grad)
    assert [one.dtype for one in found] == [torch.bfloat16] * 2 + [torch.float32] * 2
    expected = gradients(conv.double(), grid.double(), out_grad.double())
    for ours, exact, tolerance in zip(found, expected, (1e-2, 1e-2, 1e-5, 1e-5), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()))


@has_compiler
def test_the_kernel_is_called_in_training_alone(images, monkeypatch):
    calls = []
    monkeypatch.setattr(ops._Depthwise, "apply", lambda *args: calls.append(1) or F.conv2d(*args, padding=3, groups=16))
    conv, grid = DepthwiseConv2d(16, 7), images(1, 16, 8, 8)
    with torch.no_grad():
        conv(grid)
    conv.requires_grad_(False)(grid)
    conv.double()(grid.double())
    DepthwiseConv2d(16, 3)(grid)
    DepthwiseConv2d(12, 7)(images(1, 12, 8, 8))
    DepthwiseConv2d(16, 7)(torch.randn(1, 16, 8, 8))
    assert DepthwiseConv2d(16, 7, stride=2)(grid).shape == (1, 16, 4, 4)
    assert calls == []
    DepthwiseConv2d(16, 7)(grid)
    assert calls == [1]


@has_compiler
def test_a_peers_depthwise_convolutions_are_made_ours(images):
    model = timm.create_model("mobilenetv3_small_100", num_classes=10).eval()  # whose dropout would differ
    theirs = [name for name, part in model.named_modules() if getattr(part, "groups", 1) > 1]
    grid = images(4, 3, 64, 64)
    weights, plain = model.state_dict(), copy.deepcopy(model)
    assert with_kernels(model) is model
    assert [name for name, part in model.named_modules() if isinstance(part, DepthwiseConv2d)] == theirs
    assert len(theirs) == 11
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    for ours, expected in zip(*(gradients(one, grid, torch.ones(4, 10)) for one in (model, plain)), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_other_convolutions_stay_as_they_are():
    others = nn.ModuleList(
        [
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 16, 3, padding=1, groups=8),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.Conv2d(8, 8, 4, padding=2, groups=8),
            nn.Conv2d(8, 8, (3, 5), padding=1, groups=8),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, padding_mode="reflect"),
            nn.Conv2d(8, 8, 5, padding=2, groups=8, dilation=2),
            Conv2dSame(8, 8, 3, groups=8),
        ]
    )
    assert not any(isinstance(part, DepthwiseConv2d) for part in with_kernels(others))
    assert isinstance(with_kernels(nn.Conv2d(8, 8, 3, 2, 1, groups=8)), DepthwiseConv2d)


@has_compiler
def test_any_number_of_threads_gives_the_same_bits(images):
    conv, grid, out_grad = DepthwiseConv2d(32, 7), images(21, 32, 7, 9), images(21, 32, 7, 9)
    found = with_threads((1, 2, 3), lambda: gradients(conv, grid, out_grad)[2])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@has_compiler
def test_a_gradient_of_a_gradient_is_torchs(images):
    conv, grid = DepthwiseConv2d(8, 5), images(2, 8, 6, 6).requires_grad_()
    [gradient] = torch.autograd.grad(conv(grid).square().sum(), conv.weight, create_graph=True)
    gradient.square().sum().backward()
    plain = torch.autograd.grad(F.conv2d(grid, conv.weight, conv.bias, padding=2, groups=8).square().sum(),
                                conv.weight, create_graph=True)[0]  # fmt: skip
    [expected] = torch.autograd.grad(plain.square().sum(), conv.weight)
    torch.testing.assert_close(conv.weight.grad, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("count", "height", "width"), [(2, 16, 16), (1, 3, 5), (3, 1, 1)])
def test_colours_are_normalised_alike_in_one_pass_and_in_two(count, height, width):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = (pixels.double() / 255 - mean) / std
    for given in (pixels.to(memory_format=torch.channels_last), pixels.contiguous()):
        found = normalised(given, mean, std)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def norm_pair(channels):
    """A NormRelu2d with some weights, and torch's BatchNorm with the same ones in double."""
    norm, plain = NormRelu2d(channels), torch.nn.BatchNorm2d(channels).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    plain.load_state_dict(norm.state_dict())
    return norm, plain


@has_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(
    ("count", "channels", "height", "width"), [(6, 24, 16, 16), (3, 8, 1, 1), (5, 40, 7, 3), (1, 96, 3, 70)]
)
def test_norm_and_relu_agree_with_torch_in_double(images, count, channels, height, width, dtype, tolerance):
    norm, plain = norm_pair(channels)
    shape = (count, channels, height, width)
    grid, out_grad = (3 * images(*shape) + 7).to(dtype).requires_grad_(), images(*shape).to(dtype)
    assert norm.trains_by_kernel(grid, norm.weight, norm.bias)
    exact = grid.detach().double().requires_grad_()
    out = norm(grid)
    out.backward(out_grad)
    expected = F.relu(plain(exact))
    expected.backward(out_grad.double())
    assert out.dtype == grid.grad.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    pairs = [(out, expected, tolerance), (grid.grad, exact.grad, tolerance)]
    pairs += [(a.grad, b.grad, 1e-5) for a, b in zip(norm.parameters(), plain.parameters(), strict=True)]
    pairs += [(a, b, 1e-5) for a, b in zip(norm.buffers(), plain.buffers(), strict=True)]
    for ours, theirs, within in pairs:
        torch.testing.assert_close(
            ours.double(), theirs.double(), rtol=within, atol=within * max(float(theirs.detach().abs().max()), 1e-3)
        )


@has_compiler
def test_norm_and_relu_keep_what_is_not_finite(images):
    norm, _ = norm_pair(16)
    for value in (float("nan"), float("inf")):
        grid = images(2, 16, 4, 4).bfloat16()
        grid[0, 3, 1, 1] = value
        grid.requires_grad_()
        out = norm(grid)
        assert out.isfinite().all(dim=(0, 2, 3)).tolist() == [channel != 3 for channel in range(16)]
        out.backward(torch.ones_like(out))
        assert not grid.grad[:, 3].isfinite().any()
        assert grid.grad[:, :3].isfinite().all()


@has_compiler
def test_norm_and_relu_give_the_same_bits_with_any_number_of_threads(images):
    norm, _ = norm_pair(24)
    grid, out_grad = images(5, 24, 9, 9), images(5, 24, 9, 9)
    found = with_threads((1, 2, 3), lambda: torch.cat([one.flatten() for one in gradients(norm, grid, out_grad)]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@has_compiler
def test_a_gradient_of_norms_gradient_is_torchs(images):
    norm, plain = norm_pair(8)
    grid, found = images(3, 8, 5, 5), []
    for module, given in ((norm, grid), (lambda x: F.relu(plain(x)), grid.double())):
        given = given.requires_grad_()
        [gradient] = torch.autograd.grad(module(given).square().sum(), given, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), given)[0].double())
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3 * float(found[1].abs().max()))


@has_compiler
def test_norm_and_relu_are_torchs_outside_training(images):
    norm, plain = norm_pair(16)
    grid = images(4, 16, 6, 6)
    assert not norm.trains_by_kernel(images(1, 16, 1, 1), norm.weight, norm.bias)
    assert not norm.trains_by_kernel(torch.randn(4, 16, 6, 6), norm.weight, norm.bias)
    with torch.no_grad():
        assert not norm.trains_by_kernel(grid, norm.weight, norm.bias)
    norm.eval()
    plain.eval()
    assert not norm.trains_by_kernel(grid, norm.weight, norm.bias)
    torch.testing.assert_close(norm(grid).double(), F.relu(plain(grid.double())), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [({"CC": "no-such-compiler"}, "no-such-compiler"), ({"CC": "false"}, "false"), ({"ATNET_KERNELS": "0"}, "")],
)
def test_without_a_compiler_it_trains_on_and_says_why(change, said):
    script = (
        "import logging, torch; logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        "from atnet.models.ops import DepthwiseConv2d\n"
        "conv = DepthwiseConv2d(16, 7)\n"
        "for _ in range(2): conv(torch.randn(1, 16, 8, 8).to(memory_format=torch.channels_last)).sum().backward()\n"
        "print(float(conv.bias.grad.sum()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | change, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == 2 * 16 * 64
    lines = [line for line in done.stderr.splitlines() if "depthwise" in line]
    assert len(lines) == (1 if said else 0)
    assert all(said in line for line in lines)


def halves(channels, kernel):
    """Half a ConvMix block with uneven weights: a convolution and its norm."""
    torch.manual_seed(1)
    conv = DepthwiseConv2d(channels, kernel, bias=False) if kernel > 1 else nn.Conv2d(channels, channels, 1, bias=False)
    norm = NormRelu2d(channels)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    return conv, norm


DROPPED = DropPath(1 / 3)


@pytest.fixture(autouse=True)
def _known_choice(monkeypatch):
    """Of three images DROPPED drops one, and the others count 1.5 times."""
    drop_path = drop.drop_path

    def choose(x, drop_prob=0.0, *options):
        if drop_prob != DROPPED.drop_prob:
            return drop_path(x, drop_prob, *options)
        factors = torch.tensor([1.5, 0.0, 1.5], dtype=x.dtype, device=x.device).repeat(6)[: len(x)]
        return x * factors.reshape(-1, *[1] * (x.ndim - 1))

    monkeypatch.setattr(drop, "drop_path", choose)


def mixed(conv, norm, grid, out_grad, half=mix, drop_path=NOTHING):
    """What half a block makes of a grid, the gradients, and the running statistics after it."""
    grid = grid.clone(memory_format=torch.preserve_format).requires_grad_()
    norm.reset_running_stats()
    out = half(grid, conv, norm, drop_path)
    parameters = (grid, conv.weight, norm.weight, norm.bias)
    found = (out, *torch.autograd.grad(out, parameters, out_grad), norm.running_mean, norm.running_var)
    return [one.detach().double() for one in found]


def plainly(grid, conv, norm, drop_path):
    return grid + drop_path(F.relu(nn.BatchNorm2d.forward(norm, conv(grid))))


@has_compiler
@pytest.mark.parametrize("drop_path", [NOTHING, DROPPED])
@pytest.mark.parametrize("kernel", [1, 5])
@pytest.mark.parametrize("sides", [(3, 24, 9, 8), (17, 8, 5, 3), (2, 136, 4, 4), (3, 8, 17, 9)])
def test_half_a_block_in_one_operation_agrees_with_torch_in_double(images, sides, kernel, drop_path):
    conv, norm = halves(sides[1], kernel)
    grid, out_grad = images(*sides) + 3, images(*sides)
    assert _mixes(grid, conv, norm, drop_path)
    found = mixed(conv, norm, grid, out_grad, drop_path=drop_path)
    expected = mixed(conv.double(), norm.double(), grid.double(), out_grad.double(), plainly, drop_path)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@has_compiler
@pytest.mark.parametrize("drop_path", [NOTHING, DROPPED])
@pytest.mark.parametrize("kernel", [1, 5])
def test_half_a_block_in_bf16_is_as_exact_as_torchs(images, kernel, drop_path):
    conv, norm = halves(24, kernel)
    grid, out_grad = images(3, 24, 9, 8).bfloat16(), images(3, 24, 9, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = mixed(conv, norm, grid, out_grad, drop_path=drop_path)
        torchs = mixed(conv, norm, grid, out_grad, plainly, drop_path)
    expected = mixed(conv.double(), norm.double(), grid.double(), out_grad.double(), plainly, drop_path)
    for ours, theirs, exact in zip(found, torchs, expected, strict=True):
        assert (ours - exact).norm() < 1.2 * (theirs - exact).norm() + 1e-6 * exact.norm()


@has_compiler
@pytest.mark.parametrize("drop_path", [NOTHING, DROPPED])
@pytest.mark.parametrize("kernel", [1, 5])
def test_half_a_block_has_torchs_second_derivative(images, kernel, drop_path):
    conv, norm = halves(8, kernel)
    grid = images(2, 8, 6, 6).requires_grad_()

    def second(half):
        [first] = torch.autograd.grad(half(grid, conv, norm, drop_path).square().sum(), conv.weight, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (conv.weight, grid))

    for ours, theirs in zip(second(mix), second(plainly), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


@has_compiler
def test_half_a_block_that_is_looked_into_runs_its_parts(images):
    conv, norm = halves(8, 5)
    grid = images(2, 8, 6, 6)
    drop_path = DROPPED
    before = mix(grid, conv, norm, drop_path)
    seen = []
    for part in (conv, norm, drop_path):
        hook = part.register_forward_hook(lambda _, given, out: seen.append(out.shape))
        torch.testing.assert_close(mix(grid, conv, norm, drop_path), before, rtol=1e-5, atol=1e-5)
        hook.remove()
    assert seen == 3 * [grid.shape]


@has_compiler
def test_stochastic_depth_drops_the_same_images_in_one_operation_as_in_parts(images):
    conv, norm = halves(8, 5)
    grid, drop_path = images(64, 8, 6, 6), DropPath(0.4)
    outs = []
    for half in (mix, plainly):
        torch.manual_seed(2)
        outs.append(half(grid, conv, norm, drop_path))
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)
    dropped = int((outs[0] == grid).flatten(1).all(1).sum())
    assert 0 < dropped < 64


@has_compiler
def test_far_from_zero_the_variance_is_exact(images):
    norm = NormRelu2d(16)
    grid = images(4, 16, 12, 12) * 1e-2 + 100
    norm(grid)
    expected = grid.double().var((0, 2, 3))
    torch.testing.assert_close((norm.running_var.double() - 0.9) / 0.1, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("queries", [1, 69])
def test_plain_attention_of_training_is_the_fused_one(queries, dtype, tolerance):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, count, 16, dtype=dtype) for count in (queries, 69, 69))
    with torch.no_grad():
        fused = attend(query, key, value)
    assert not trains_faster_plain(query, key)
    query.requires_grad_()
    assert trains_faster_plain(query, key)
    plain = attend(query, key, value)
    assert plain.dtype == dtype
    torch.testing.assert_close(plain, fused, rtol=tolerance, atol=tolerance)


def test_attention_to_many_tokens_is_fused_in_training_too():
    query = torch.randn(1, 1, 300, 8, requires_grad=True)
    assert not trains_faster_plain(query, query)
    assert trains_faster_plain(query[:, :, :5], query)


@has_compiler
def test_under_bf16_on_a_cpu_what_is_slower_there_stays_fp32_and_the_gradient_close(monkeypatch):
    torch.manual_seed(0)
    model, images = create_model("xxxs", num_classes=5), torch.randn(4, 3, 64, 64).to(memory_format=torch.channels_last)
    types = {}
    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *qkv: types.setdefault("attention", qkv[0].dtype) and attention(*qkv)
    )
    for name in ("stages.1.blocks.0.depthwise", "stages.1.blocks.0.pointwise", "encoder.0.mlp.fc1"):
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: types.update({name: out.dtype}))

    def gradient(bf16):
        model.zero_grad()
        types.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = model(images)
        out.float().square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    plain, lowered = gradient(False), gradient(True)
    assert types == {
        "stages.1.blocks.0.depthwise": torch.bfloat16,
        "stages.1.blocks.0.pointwise": torch.bfloat16,
        "encoder.0.mlp.fc1": torch.bfloat16,
    }
    assert torch.cosine_similarity(plain, lowered, dim=0) > 0.97
    types.clear()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(images)
    assert types["attention"] == types["stages.1.blocks.0.depthwise"] == torch.float32


# Whatever reaches a block, its answer and its gradients are those without kernels.


@pytest.fixture
def block():
    """A ConvMix block of 16 channels, with uneven weights."""
    torch.manual_seed(3)
    made = ConvMix(16, 5, 0.0).to(memory_format=torch.channels_last)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


@pytest.fixture
def plainly_too(monkeypatch):
    """What a function finds with the kernels, which is the same without them."""

    def compare(find, within=1e-3):
        ours = find()
        with monkeypatch.context() as patch:
            patch.setattr(ops, "kernels", lambda: None)
            theirs = find()
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype
            assert (one.double() - other.double()).norm() <= within * other.double().norm() + 1e-3 * within
        return ours

    return compare


def trained(block, grid, weights=None, loss=lambda out: out.float().square().sum()):
    """A block's answer, and the gradients of the grid and the weights; of a copy, as statistics move."""
    block = copy.deepcopy(block)
    weights = dict(block.named_parameters()) if weights is None else weights
    grid = grid.detach().requires_grad_()
    out = functional_call(block, weights, (grid,))
    return [out.detach(), *torch.autograd.grad(loss(out), [grid, *weights.values()])]


@has_compiler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", [torch.float32, torch.float64, None])
def test_autocast_of_any_precision_and_weights_of_any_is_torchs(images, block, plainly_too, dtype, weights):
    block, grid = block.to(weights or dtype), images(4, 16, 9, 9).to(weights or dtype)

    def find():
        with torch.autocast("cpu", dtype):
            found = trained(block, grid, loss=lambda out: out.float().square().mean())
        return [one.float() for one in found]

    plainly_too(find, within=0.1)


@has_compiler
@pytest.mark.parametrize("part", ["norm1.weight", "norm1.bias", "pointwise.weight", "depthwise.weight"])
def test_one_tensor_of_another_precision_is_never_misread(images, block, part):
    name, kind = part.split(".")
    module = block.get_submodule(name)
    setattr(module, kind, nn.Parameter(getattr(module, kind).detach().double()))
    with pytest.raises(RuntimeError, match=r"(?i)type"):  # as torch's own operations
        trained(block, images(4, 16, 9, 9))


STORED = {
    "strided": lambda x: torch.stack([x, x + 1], -1)[..., 0],
    "sliced": lambda x: torch.cat([x + 1, x])[len(x) :],
    "negated": lambda x: torch._neg_view(-x),
    "reversed": lambda x: x.flip(0).flip(0),
    "expanded": lambda x: x[:1].expand(x.shape) if x.ndim == 1 else x,
}


@has_compiler
@pytest.mark.parametrize("how", STORED)
def test_weights_are_read_however_they_are_stored(images, block, how):
    grid = images(4, 16, 9, 9)
    weights = {name: STORED[how](p.detach()).requires_grad_() for name, p in block.named_parameters()}
    plainly = {name: w.detach().clone(memory_format=torch.contiguous_format) for name, w in weights.items()}
    expected = trained(block, grid, {name: w.requires_grad_() for name, w in plainly.items()})
    for one, other in zip(trained(block, grid, weights), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


GRIDS = {
    "of some channels": lambda x: torch.cat([x, x], 1)[:, 8:24],
    "of some rows": lambda x: torch.cat([x, x], 2)[:, :, 3:12],
    "of one image": lambda x: x[:1].expand(x.shape),
    "negated": lambda x: torch._neg_view(x),
    "subclass": lambda x: x.as_subclass(type("Numbers", (torch.Tensor,), {})),
    "fp64": lambda x: x.double(),
}


@has_compiler
@pytest.mark.parametrize("how", GRIDS)
def test_grids_are_read_however_they_are_stored(images, block, plainly_too, how):
    grid = GRIDS[how](images(4, 16, 9, 9))
    plainly_too(lambda: trained(block.to(grid.dtype), grid))


@has_compiler
def test_gradients_are_read_however_they_are_stored(images, block, plainly_too):
    slope, grid = torch.arange(9.0), images(4, 16, 9, 9)
    for loss in (torch.sum, lambda out: (out.transpose(2, 3).flip(2) * slope).square().sum(), lambda out: out[1].sum()):
        plainly_too(lambda loss=loss: trained(block, grid, loss=loss))


@has_compiler
def test_an_empty_grid_and_one_without_a_batch_are_torchs(images, plainly_too):
    conv = DepthwiseConv2d(16, 5)
    for grid in (images(0, 16, 9, 9), torch.randn(16, 8, 9)):
        plainly_too(lambda grid=grid: trained(conv, grid))


@has_compiler
@pytest.mark.parametrize("change", [
    lambda block: setattr(block.depthwise, "dilation", (2, 2)) or setattr(block.depthwise, "padding", (4, 4)),
    lambda block: setattr(block, "pointwise", nn.Conv2d(16, 16, 1, groups=4, bias=False)),
    lambda block: setattr(block, "pointwise", nn.Conv2d(16, 16, (3, 1), padding=(1, 0), bias=False)),
    lambda block: setattr(block, "pointwise", nn.Sequential(block.pointwise, nn.Conv2d(16, 16, 1, bias=False))),
    lambda block: setattr(block, "norm1", NormRelu2d(16, affine=False)),
    lambda block: setattr(block.norm1, "act", nn.GELU()),
    lambda block: setattr(block.norm1, "drop", nn.Hardtanh()),
    lambda block: setattr(block, "drop_path", nn.Softsign()),
    lambda block: block.norm1.eval().requires_grad_(False),
    lambda block: parametrize.register_parametrization(block.norm1, "weight", nn.Softplus()),
    lambda block: parametrize.register_parametrization(block.depthwise, "weight", nn.Tanh()),
    lambda block: prune.l1_unstructured(block.pointwise, "weight", 0.5),
    lambda block: setattr(block.depthwise, "forward", block.pointwise.forward),
    lambda block: setattr(block.norm2, "__class__", type("Other", (NormRelu2d,), {"forward": lambda _, x: 2 * x})),
])  # fmt: skip
def test_a_part_that_was_changed_does_what_it_was_changed_to(images, block, plainly_too, change):
    with torch.random.fork_rng():
        change(block)
    grid = images(4, 16, 9, 9)

    def find():
        given = grid.clone(memory_format=torch.preserve_format).requires_grad_()
        out = block(given)
        learned = [p for p in block.parameters() if p.requires_grad]
        return [out.detach(), *torch.autograd.grad(out.square().sum(), [given, *learned], materialize_grads=True)]

    plainly_too(find)


HOOKS = (
    "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
    "register_full_backward_pre_hook",
)  # fmt: skip


@has_compiler
@pytest.mark.parametrize(
    "part", ["depthwise", "norm1", "norm1.act", "norm1.drop", "pointwise", "norm2", "drop_path", ""]
)
@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_on_any_part_is_called(images, block, kind, part):
    block.norm1.act.inplace = False  # else torch refuses backward hooks around it
    calls = []
    getattr(block.get_submodule(part), kind)(lambda *_: calls.append(1) and None)
    grid = images(2, 16, 9, 9).requires_grad_()
    block(grid).sum().backward()
    assert len(calls) == (2 if part == "drop_path" else 1)


@has_compiler
def test_a_hook_on_all_modules_is_called_for_each(images, block):
    called = []
    hook = register_module_forward_hook(lambda module, *_: called.append(module))
    try:
        block(images(2, 16, 9, 9))
    finally:
        hook.remove()
    parts = [block.depthwise, block.norm1, block.norm1.act, block.norm1.drop, block.pointwise, block.norm2, block]
    assert all(part in called for part in parts)


@has_compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch's own, in forward mode
def test_torch_func_and_forward_mode_see_what_is_done(images, block, plainly_too):
    block.eval()
    grid, along = images(3, 16, 7, 7), images(3, 16, 7, 7)
    weights = {name: p.detach() for name, p in block.named_parameters()}

    def loss(weights, image):
        return functional_call(block, weights, (image[None],)).square().sum()

    plainly_too(lambda: vmap(grad(loss), in_dims=(None, 0))(weights, grid).values())
    plainly_too(lambda: [grad(lambda x: block(x).square().sum())(grid)])
    plainly_too(lambda: [x.detach() for x in jvp(block, (grid,), (along,))])
    block.train()

    def tangent():
        with forward_ad.dual_level():
            return [forward_ad.unpack_dual(block(forward_ad.make_dual(grid, along))).tangent.detach()]

    plainly_too(tangent)
    given = images(2, 16, 5, 5)

    def jacobian():
        return [torch.autograd.functional.jacobian(lambda x: block(x).square().sum((0, 2, 3)), given, vectorize=True)]

    plainly_too(jacobian)


@has_compiler
def test_a_traced_training_step_holds_what_was_done(images, block):
    traced = make_fx(lambda x: block(x))(images(2, 16, 7, 7))
    other = images(2, 16, 7, 7) + 1
    torch.testing.assert_close(traced(other), block(other), rtol=1e-4, atol=1e-4)


@has_compiler
@pytest.mark.parametrize(
    "unpack", [lambda x: torch.from_numpy(x.numpy().copy(order="C")), lambda x: torch._neg_view(-x), torch.clone]
)
def test_saved_tensors_may_come_back_stored_otherwise(images, block, plainly_too, unpack):
    def find():
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x.detach(), unpack):
            return trained(block, grid)

    grid = images(4, 16, 9, 9)
    plainly_too(find)


@has_compiler
def test_torchs_defaults_and_its_other_convolutions_change_nothing(images, block):
    block.drop_path.drop_prob = DROPPED.drop_prob
    grid = images(3, 16, 9, 9)
    expected = trained(block, grid)
    torch.set_default_dtype(torch.float64)
    try:
        found = trained(block, grid)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        elsewhere = trained(block, grid)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(elsewhere, expected, strict=True))
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # its convolutions answer in another layout
    try:
        native = trained(block, grid)
    finally:
        torch._C._set_mkldnn_enabled(before)
    for one, other in zip(native, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


@has_compiler
def test_a_second_derivative_needs_none_of_the_grid(images, block, plainly_too):
    grid = images(3, 16, 7, 7)

    def find():
        weights = list(block.parameters())
        first = torch.autograd.grad(block(grid).square().sum(), weights, create_graph=True)
        return torch.autograd.grad(sum(one.square().sum() for one in first), weights)

    plainly_too(find)


@has_compiler
@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.double(), lambda x: x.half(), lambda x: x[:4], lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: x[:1].expand(8), lambda x: torch._neg_view(x), lambda x: x.to("meta"), lambda x: None,
        lambda x: x.to_sparse(),
    ],
)  # fmt: skip
def test_no_kernel_is_called_on_what_it_would_misread(images, wrong):
    grid, channel = images(2, 8, 4, 4), torch.ones(8)
    numbers = (1e-5, False, 32, 16, 8)
    for place in (4, 5, 6, 7):
        tensors = [grid, None, None, torch.empty_like(grid), *(torch.ones(8) for _ in range(4))]
        ops.call("norm_relu", tensors, *numbers)
        tensors[place] = wrong(channel)
        with pytest.raises(ValueError, match="channels"):
            ops.call("norm_relu", tensors, *numbers)
    tensors = [grid, grid.contiguous(), None, torch.empty_like(grid), *(torch.ones(8) for _ in range(4))]
    with pytest.raises(ValueError, match="grid"):
        ops.call("norm_relu", tensors, *numbers)


def test_colours_of_any_precision_are_normalised():
    pixels = torch.arange(150, dtype=torch.uint8).reshape(2, 3, 5, 5).to(memory_format=torch.channels_last)
    mean, std = torch.full((1, 3, 1, 1), 0.4), torch.full((1, 3, 1, 1), 0.3)
    expected = normalised(pixels.contiguous(), mean, std)
    scalar = torch.tensor(0.4), torch.tensor(0.3)
    for given in (
        (pixels.int(), mean, std),
        (pixels.float(), mean, std),
        (pixels, mean.double(), std),
        (pixels, *scalar),
    ):
        torch.testing.assert_close(normalised(*given).float(), expected)
    assert normalised(pixels[:0], mean, std).shape == (0, 3, 5, 5)
