"""Operations that want more care on a CPU than torch gives them: depthwise convolution, BatchNorm, attention.

The weight gradient of a depthwise convolution, and BatchNorm with the ReLU after it, are `kernels.c` in training, where
a compiler can build that; half a ConvMix block is then one operation, its residual and stochastic depth included. Under
bf16 autocast convolutions that it does not serve stay in fp32, as does fused attention: the backward passes of torch's
bf16 ones are 3 to 100 times slower. In training, attention to few tokens is plain products, which are faster there than
the fused backward.
"""

import ctypes
import functools
import logging
import math
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from timm.models import register_notrace_function, register_notrace_module
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
PLAIN = {torch.float32: 128**2, torch.bfloat16: 256**2}  # queries x keys up to which plain products train faster
log = logging.getLogger("atnet")


@functools.cache
def torch_alone() -> bool:
    """Whether ATNET_KERNELS=0 in the environment leaves all to torch, to compare or to look for a fault."""
    return os.environ.get("ATNET_KERNELS") == "0"


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """`kernels.c`, compiled for this processor in a quarter of a second; None, and said why, if it can't be.

    CC in the environment names another compiler than cc.
    """
    if torch_alone():
        return None
    command = [*shlex.split(os.environ.get("CC") or "cc"), *FLAGS, str(SOURCE), "-o"]
    try:
        with tempfile.TemporaryDirectory(prefix="atnet-", ignore_cleanup_errors=True) as folder:
            library = f"{folder}/kernels.so"
            subprocess.run([*command, library], check=True, capture_output=True, text=True, timeout=120)
            return ctypes.CDLL(library)
    except (OSError, subprocess.SubprocessError) as error:
        said = (str(getattr(error, "stderr", None) or "").strip() or str(error)).splitlines()
        log.info(
            "trains on torch's own depthwise gradient and BatchNorm, up to a third slower: no C compiler here (%s)",
            said[0],
        )
        return None


def has_kernel(grid: Tensor, weight: Tensor) -> bool:
    """Whether the weight gradient of this convolution is ours: where the kernels serve, and where it pays."""
    return weight.shape[-1] >= 5 and serves(grid, weight)


def serves(grid: Tensor, weight: Tensor) -> bool:
    """Whether the kernels take a grid and its weights: on a CPU, channels-last, a multiple of 8 channels."""
    return (
        grid.device.type == "cpu"
        and grid.dtype in (torch.float32, torch.bfloat16)
        and weight.dtype == torch.float32
        and grid.shape[1] % 8 == 0
        and grid.is_contiguous(memory_format=torch.channels_last)
        and kernels() is not None
    )


def call(name: str, *given: Any) -> None:
    """One of the kernels; tensors are given by their place. Raises MemoryError where memory is short."""
    library = kernels()
    assert library
    kinds = {float: ctypes.c_float, bool: ctypes.c_int, int: ctypes.c_size_t, type(None): ctypes.c_void_p}
    if getattr(library, name)(
        *(ctypes.c_void_p(one.data_ptr()) if isinstance(one, Tensor) else kinds[type(one)](one) for one in given),
        ctypes.c_int(torch.get_num_threads()),
    ):
        raise MemoryError(f"can't allocate memory for {name.replace('_', ' ')}")


class _Depthwise(torch.autograd.Function):
    """Torch's convolutions in the precision of the grid, our weight gradient in fp32."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(grid, weight)
        bias = bias.to(grid.dtype) if bias is not None else None
        return F.conv2d(grid, weight.to(grid.dtype), bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grid, weight = ctx.saved_tensors
        of_grid, of_weight, of_bias = ctx.needs_input_grad
        channels, kernel = grid.shape[1], weight.shape[-1]
        ours = of_weight and not torch.is_grad_enabled()  # else a second derivative is wanted, which torch's has
        grad = grad.contiguous(memory_format=torch.channels_last)
        grads: list[Tensor | None] = [None, None, None]
        if ours:  # one more forward pass, by the kernel turned about, is up to twice as fast as torch's gradient
            if of_grid:
                turned = weight.flip(2, 3).to(grid.dtype)
                grads[0] = F.conv2d(grad, turned, padding=kernel // 2, groups=channels)
        else:
            grads[:2] = torch.ops.aten.convolution_backward(  # with a bias it would compute the weight's too
                grad, grid, weight.to(grid.dtype), None, [1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0], channels,
                [of_grid, of_weight, False],
            )[:2]  # fmt: skip
        if of_bias:
            grads[2] = grad.sum((0, 2, 3), dtype=torch.float32)
        if ours:
            grads[1] = _weight_gradient(grid, grad, weight)
        return tuple(grads)


def _weight_gradient(grid: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """Of a depthwise convolution, fp32, from its grid and the gradient of what it made of it."""
    count, channels, height, width = grid.shape
    kernel = weight.shape[-1]
    taps = torch.empty(kernel, kernel, channels)
    bf16 = grid.dtype == torch.bfloat16
    call("depthwise_weight_gradient", grid, grad, taps, bf16, count, height, width, channels, kernel)
    return taps.permute(2, 0, 1).unsqueeze(1)


@register_notrace_module
class DepthwiseConv2d(nn.Conv2d):
    """A kernel x kernel convolution of each channel by itself; kernel odd, zeros around, sides divided by stride."""

    def __init__(self, dim: int, kernel: int, stride: int = 1, **factory: Any) -> None:
        super().__init__(dim, dim, kernel, stride, padding=kernel // 2, groups=dim, **factory)

    def forward(self, grid: Tensor) -> Tensor:
        if not is_scripting():
            lowered = grid.to(torch.get_autocast_dtype("cpu")) if autocasts(grid) else grid
            trains = torch.is_grad_enabled() and self.weight.requires_grad and not torch.compiler.is_compiling()
            if trains and self.stride == (1, 1) and has_kernel(lowered, self.weight):
                return _Depthwise.apply(lowered, self.weight, self.bias)
            if autocasts(grid):
                with torch.autocast("cpu", enabled=False):
                    return self.forward(grid.float())
        return self._conv_forward(grid, self.weight, self.bias)


def with_kernels(model: nn.Module) -> nn.Module:
    """The model itself, its plain depthwise convolutions made ours: the same function, weights and names of them."""
    for conv in model.modules():
        if type(conv) is not nn.Conv2d or not conv.groups == conv.in_channels == conv.out_channels > 1:
            continue
        side = conv.kernel_size[0]
        centred = (side, side) == conv.kernel_size and side % 2 and (side // 2, side // 2) == conv.padding
        if centred and conv.dilation == (1, 1) and conv.padding_mode == "zeros":
            conv.__class__ = DepthwiseConv2d
    return model


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Colours, uint8 (N, 3, H, W), less mean and divided by std, each (1, 3, 1, 1) of colours from 0 to 1.

    In one pass on a CPU, if channels-last and where the kernels are; else in two.
    """
    scale, shift = 1 / (255 * std), -mean / std
    last = pixels.is_contiguous(memory_format=torch.channels_last)
    if pixels.device.type == "cpu" and pixels.shape[1] == 3 and last and kernels() is not None:
        images = torch.empty_like(pixels, dtype=torch.float32)
        call("normalise", pixels, images, scale.contiguous(), shift.contiguous(), pixels[:, 0].numel())
        return images
    return (pixels * scale).add_(shift)


def _norm_relu(
    grid: Tensor, weight: Tensor, bias: Tensor, eps: float, more: Tensor | None = None, factors: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm by the grid's own statistics and ReLU, times each picture's factor, plus more; mean and variance."""
    out, mean, variance = torch.empty_like(grid), torch.empty_like(weight), torch.empty_like(weight)
    call("norm_relu", grid, more, factors, out, weight, bias, mean, variance, eps, *_counts(grid))
    return out, mean, variance


def _norm_relu_gradient(
    grid: Tensor, grad: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float,
    factors: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Of the grid, the weight and the bias; grad is channels-last."""
    grads = torch.empty_like(grid), torch.empty_like(weight), torch.empty_like(bias)
    call(
        "norm_relu_gradient", grid, grad, factors, grads[0], weight, bias, mean, variance, grads[1], grads[2],
        eps, *_counts(grid),
    )  # fmt: skip
    return grads


def _counts(grid: Tensor) -> tuple[bool, int, int, int]:
    """Whether it is bf16; pixels of all pictures and of one, and channels."""
    return grid.dtype == torch.bfloat16, grid[:, 0].numel(), grid[0, 0].numel(), grid.shape[1]


class _NormRelu(torch.autograd.Function):
    """BatchNorm by the grid's own statistics, which are returned too, and ReLU."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        out, mean, variance = _norm_relu(grid, weight, bias, eps)
        ctx.save_for_backward(grid, weight, bias, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grid, weight, bias, mean, variance = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted, which torch's has
            out = F.relu(F.batch_norm(grid, None, None, weight, bias, True, 0.0, ctx.eps))
            return *torch.autograd.grad(out, (grid, weight, bias), grad, create_graph=True), None
        grad = grad.contiguous(memory_format=torch.channels_last)
        return *_norm_relu_gradient(grid, grad, weight, bias, mean, variance, ctx.eps), None


@register_notrace_module
class NormRelu2d(BatchNormAct2d):  # type: ignore[misc]  # timm has no types
    """BatchNorm, then ReLU: timm's, by our kernel where it trains on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if is_scripting():  # TorchScript knows no super()
            out = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training, eps=self.eps
            )
            return F.relu(out)
        else:
            if self.trains_by_kernel(x):
                out, mean, variance = _NormRelu.apply(x, self.weight, self.bias, self.eps)
                self.follow(mean, variance, x[:, 0].numel())
                return out
            return super().forward(x)

    @torch.jit.ignore
    def trains_by_kernel(self, grid: Tensor) -> bool:
        """Whether this forward pass is the kernel's."""
        return (
            self.training
            and self.track_running_stats
            and self.momentum is not None
            and torch.is_grad_enabled()
            and self.weight.requires_grad
            and self.bias.requires_grad
            and not torch.compiler.is_compiling()
            and grid[:, 0].numel() > 1
            and serves(grid, self.weight)
        )

    @torch.jit.ignore
    def follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """The running statistics move towards those of a batch of `count` numbers a channel."""
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


class _Mix(torch.autograd.Function):
    """grid + factors x ReLU(BatchNorm(convolution of the grid)), depthwise or 1x1; and the batch's statistics.

    In one operation: the residual is added where the numbers are at hand, in both directions. factors: one for each
    picture, or None.
    """

    @staticmethod
    def forward(
        ctx: Any, grid: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor, eps: float, factors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        mixed = _convolved(grid, kernel)
        out, mean, variance = _norm_relu(mixed, weight, bias, eps, grid, factors)
        ctx.save_for_backward(grid, kernel, mixed, weight, bias, mean, variance)
        ctx.eps, ctx.factors = eps, factors
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grid, kernel, mixed, weight, bias, mean, variance = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted, which torch's has
            change = F.relu(F.batch_norm(_convolved(grid, kernel), None, None, weight, bias, True, 0.0, ctx.eps))
            out = grid + (change if ctx.factors is None else change * ctx.factors.reshape(-1, 1, 1, 1))
            return *torch.autograd.grad(out, (grid, kernel, weight, bias), grad, create_graph=True), None, None
        grad = grad.contiguous(memory_format=torch.channels_last)
        of_mixed, of_weight, of_bias = _norm_relu_gradient(
            mixed, grad, weight, bias, mean, variance, ctx.eps, ctx.factors
        )
        if kernel.shape[-1] > 1:
            of_grid = _convolved(of_mixed, kernel.flip(2, 3)).add_(grad)
            of_kernel = _weight_gradient(grid, of_mixed, kernel)
        else:
            # A product of pixels and channels, to which the residual's gradient is added while it is at hand.
            by = kernel[:, :, 0, 0].to(grid.dtype)
            pixels = torch.addmm(_pixels(grad).flatten(0, 2), _pixels(of_mixed).flatten(0, 2), by)
            of_grid = pixels.view_as(_pixels(grid)).permute(0, 3, 1, 2)
            of_kernel = torch.ops.aten.convolution_backward(
                of_mixed, grid, kernel.to(grid.dtype), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
                [False, True, False],
            )[1].float()  # fmt: skip
        return of_grid, of_kernel, of_weight, of_bias, None, None


def _convolved(grid: Tensor, kernel: Tensor) -> Tensor:
    """Depthwise with zeros around, or 1x1, in the precision of the grid."""
    pad, groups = kernel.shape[-1] // 2, grid.shape[1] // kernel.shape[1]
    return F.conv2d(grid, kernel.to(grid.dtype), padding=pad, groups=groups)


def _pixels(grid: Tensor) -> Tensor:
    """A channels-last grid as (count, height, width, channels)."""
    return grid.permute(0, 2, 3, 1)


def mix(grid: Tensor, convolution: nn.Conv2d, norm: nn.Module, drop_path: nn.Module) -> Tensor:
    """grid + drop_path(norm(convolution(grid))), half a ConvMix block: where it trains on a CPU, as one operation.

    drop_path: timm's DropPath, which multiplies what is given by a factor for each picture.
    """
    if not isinstance(norm, NormRelu2d) or not _mixes(grid, convolution, norm, drop_path):
        mixed: Tensor = drop_path(norm(convolution(grid)))
        return grid + mixed
    lowered = grid.to(torch.get_autocast_dtype("cpu")) if autocasts(grid) else grid
    factors = drop_path(torch.ones(len(grid))) if drop_path.drop_prob else None
    out, mean, variance = _Mix.apply(lowered, convolution.weight, norm.weight, norm.bias, norm.eps, factors)
    norm.follow(mean, variance, grid[:, 0].numel())
    return out


def _mixes(grid: Tensor, convolution: nn.Conv2d, norm: NormRelu2d, drop_path: nn.Module) -> bool:
    """Whether the kernels serve, and nobody looks at what is between the parts."""
    kernel = convolution.weight
    watched = convolution._forward_hooks or convolution._forward_pre_hooks or norm._forward_hooks
    return (
        not watched
        and not drop_path._forward_hooks
        and kernel.requires_grad
        and convolution.bias is None
        and (kernel.shape[-1] == 1 or has_kernel(grid, kernel))
        and norm.trains_by_kernel(grid)
    )


@register_notrace_function
def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
    """Attention (batch, heads, queries, width) of queries to keys and values (batch, heads, count, width).

    seen: bool (batch, 1, queries, count), which keys each query may attend to; all of them if None.
    """
    if not is_scripting():
        if trains_faster_plain(query, key):
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
            if seen is not None:
                scores = scores.masked_fill(~seen, -math.inf)
            return scores.softmax(-1).to(value.dtype) @ value
        if autocasts(query):
            with torch.autocast("cpu", enabled=False):
                return F.scaled_dot_product_attention(query.float(), key.float(), value.float(), seen)
    return F.scaled_dot_product_attention(query, key, value, seen)


def trains_faster_plain(query: Tensor, key: Tensor) -> bool:
    """Whether these are few enough for plain products, whose gradient takes memory of queries x keys."""
    return (
        query.device.type == "cpu"
        and query.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch_alone()
        and query.shape[-2] * key.shape[-2] <= PLAIN.get(query.dtype, 0)
    )


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast would lower the precision of what a CPU does with the tensor."""
    return tensor.device.type == "cpu" and torch.is_autocast_enabled("cpu")
