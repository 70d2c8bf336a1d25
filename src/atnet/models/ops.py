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
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, DropPath
from timm.models import register_notrace_function, register_notrace_module
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.jit import is_tracing  # type: ignore[attr-defined]
from torch.nn.modules.module import _has_any_global_hook

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
    if not serves(grid, weight):
        return False
    kernel = weight.shape[-1]
    return kernel >= 5 and kernel % 2 == 1 and weight.shape == (grid.shape[1], 1, kernel, kernel)


def serves(grid: Tensor, *weights: Tensor | None) -> bool:
    """Whether the kernels take a grid and its weights: on a CPU, channels-last, a multiple of 8 channels."""
    return (
        not followed()
        and is_plain(grid)
        and all(is_plain(weight, torch.float32) for weight in weights)
        and grid.dtype in (torch.float32, torch.bfloat16)
        and grid.ndim == 4
        and grid.numel() > 0
        and grid.shape[1] % 8 == 0
        and grid.is_contiguous(memory_format=torch.channels_last)
        and kernels() is not None
    )


def followed() -> bool:
    """Whether something follows single operations of torch, and would miss what a kernel does.

    That is a compiler, a tracer, a transform of torch.func, forward-mode differentiation or a dispatch mode.
    """
    return (
        torch.compiler.is_compiling()
        or is_tracing()  # type: ignore[no-untyped-call]
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


def is_plain(tensor: Any, dtype: torch.dtype | None = None) -> bool:
    """Whether it is a tensor, of no subclass, whose numbers lie in the memory of this process as they are."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.is_cpu
        and tensor.layout == torch.strided
        and not tensor.is_neg()
        and (dtype is None or tensor.dtype == dtype)
    )


def laid(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The same numbers as a kernel reads them: a grid channels-last, anything else contiguous; itself if it is so."""
    order = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    if tensor.dtype == dtype and tensor.is_contiguous(memory_format=order) and not tensor.is_neg():
        return tensor
    return tensor.resolve_neg().to(dtype).contiguous(memory_format=order)


KINDS = {
    "depthwise_weight_gradient": ("grid", "grid", "taps"),
    "norm_relu": ("grid", "grid or none", "images or none", "grid", *["channels"] * 4),
    "norm_relu_gradient": ("grid", "grid", "images or none", "grid", *["channels"] * 6),
    "normalise": ("bytes", "numbers", "colours", "colours"),
}
"""Of the tensors that each kernel is given. The grids of a call have one shape and dtype, what else is fp32."""


def call(name: str, tensors: Sequence[Tensor | None], *numbers: float) -> None:
    """One of the kernels, which see addresses and numbers alone: so all tensors are looked at here.

    Raises ValueError naming a tensor that is not what the kernel would read, MemoryError where memory is short.
    """
    library, first = kernels(), tensors[0]
    assert library
    assert first is not None
    kernel = numbers[-1]
    fp32, channels = torch.float32, first.shape[1]
    expected = {
        "grid": (first.shape, first.dtype),
        "bytes": (first.shape, torch.uint8),
        "numbers": (first.shape, fp32),
        "taps": ((kernel, kernel, channels), fp32),
        "images": (first.shape[:1], fp32),
        "channels": ((channels,), fp32),
        "colours": ((1, 3, 1, 1), fp32),
    }
    given: list[Any] = []
    for tensor, kind in zip(tensors, KINDS[name], strict=True):
        what, _, none = kind.partition(" or ")
        shape, dtype = expected[what]
        if tensor is None and none:
            given.append(ctypes.c_void_p())
            continue
        order = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        if (
            tensor is None
            or not is_plain(tensor, dtype)
            or tensor.shape != shape
            or not tensor.is_contiguous(memory_format=order)
            or not tensor.data_ptr()
        ):
            raise ValueError(
                f"{name}: argument {len(given)} is no {what} of {tuple(shape)}, {dtype}, as a kernel reads"
            )
        given.append(ctypes.c_void_p(tensor.data_ptr()))
    types: dict[type, Any] = {float: ctypes.c_float, bool: ctypes.c_int, int: ctypes.c_size_t}
    given += [types[type(number)](number) for number in (*numbers, torch.get_num_threads())]
    if getattr(library, name)(*given):
        raise MemoryError(f"can't allocate memory for {name.replace('_', ' ')}")


def _differentiably(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """The gradients of the inputs that need one by operations of torch, which have derivatives and can be followed."""
    with torch.enable_grad():
        wanted = [one for one, needs in zip(inputs, needed, strict=False) if needs]
        found = iter(torch.autograd.grad(function(*inputs), wanted, grad, create_graph=True))
        return [next(found) if needs else None for _, needs in zip(inputs, needed, strict=False)]


def _by_torch(grad: Tensor) -> bool:
    """Whether a backward pass is torch's: a second derivative is wanted, or of many gradients at once, or followed."""
    return torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(grad) or followed()


class _Depthwise(torch.autograd.Function):
    """Torch's convolutions in the precision of the grid, our weight gradient in fp32."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(grid, weight)
        bias = bias.to(grid.dtype) if bias is not None else None
        return F.conv2d(grid, weight.to(grid.dtype), bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):
            return _Depthwise.gradients(grad, *ctx.saved_tensors, *ctx.needs_input_grad)

    @staticmethod
    def gradients(
        grad: Tensor, grid: Tensor, weight: Tensor, of_grid: bool, of_weight: bool, of_bias: bool
    ) -> tuple[Tensor | None, ...]:
        """Of the grid, the weight and the bias, those that are asked for."""
        channels, kernel = grid.shape[1], weight.shape[-1]
        grads: list[Tensor | None] = [None, None, None]
        if of_weight and not _by_torch(grad):
            # One more forward pass, by the kernel turned about, is up to twice as fast as torch's gradient.
            grid, grad = laid(grid, grad.dtype), laid(grad, grad.dtype)
            if of_grid:
                turned = weight.flip(2, 3).to(grid.dtype)
                grads[0] = F.conv2d(grad, turned, padding=kernel // 2, groups=channels)
            grads[1] = _weight_gradient(grid, grad, kernel)
        else:
            grads[:2] = torch.ops.aten.convolution_backward(  # with a bias it would compute the weight's too
                grad, grid, weight.to(grid.dtype), None, [1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0], channels,
                [of_grid, of_weight, False],
            )[:2]  # fmt: skip
        if of_bias:
            grads[2] = grad.sum((0, 2, 3), dtype=torch.float32)
        return tuple(grads)


def _weight_gradient(grid: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """Of a depthwise convolution, fp32, from its grid and the gradient of what it made of it."""
    count, channels, height, width = grid.shape
    taps = torch.empty(kernel, kernel, channels, dtype=torch.float32, device="cpu")
    bf16 = grid.dtype == torch.bfloat16
    call("depthwise_weight_gradient", (grid, grad, taps), bf16, count, height, width, channels, kernel)
    return taps.permute(2, 0, 1).unsqueeze(1)


@register_notrace_module
class DepthwiseConv2d(nn.Conv2d):
    """A kernel x kernel convolution of each channel by itself; kernel odd, zeros around, sides divided by stride."""

    def __init__(self, dim: int, kernel: int, stride: int = 1, **factory: Any) -> None:
        super().__init__(dim, dim, kernel, stride, padding=kernel // 2, groups=dim, **factory)

    def forward(self, grid: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if self.trains_by_kernel(lowered(grid), weight, bias):
            return _Depthwise.apply(lowered(grid), weight, bias)
        if not autocasts(grid) or weight.dtype != torch.float32:
            return self._conv_forward(grid, weight, bias)
        with torch.autocast("cpu", enabled=False):
            return self.forward(grid.float())

    def trains_by_kernel(self, grid: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether the gradient of this convolution of a grid is the kernel's."""
        return (
            torch.is_grad_enabled()
            and has_kernel(grid, weight)
            and weight.requires_grad
            and (bias is None or is_plain(bias, torch.float32))
            and self.stride == self.dilation == (1, 1)
            and self.padding == (weight.shape[-1] // 2, weight.shape[-1] // 2)
            and self.padding_mode == "zeros"
        )


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
    colours = all(is_plain(one, torch.float32) and one.shape == (1, 3, 1, 1) for one in (scale, shift))
    if is_plain(pixels, torch.uint8) and last and colours and pixels.shape[1] == 3 and pixels.numel():  # noqa: SIM102
        if not followed() and kernels() is not None:
            images = torch.empty_like(pixels, dtype=torch.float32, memory_format=torch.channels_last)
            call("normalise", (pixels, images, scale.contiguous(), shift.contiguous()), pixels[:, 0].numel())
            return images
    return (pixels * scale).add_(shift)


def _norm_relu(
    grid: Tensor, weight: Tensor, bias: Tensor, eps: float, more: Tensor | None = None, factors: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm by the grid's own statistics and ReLU, times each image's factor, plus more; mean and variance."""
    out = torch.empty_like(grid, memory_format=torch.channels_last)
    weight, bias = laid(weight, torch.float32), laid(bias, torch.float32)
    mean, variance = torch.empty_like(weight), torch.empty_like(weight)
    call("norm_relu", (grid, more, factors, out, weight, bias, mean, variance), eps, *_counts(grid))
    return out, mean, variance


def _norm_relu_gradient(
    grid: Tensor, grad: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float,
    factors: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Of the grid, the weight and the bias; grad is channels-last."""
    out = torch.empty_like(grad)
    channels = [laid(one, torch.float32) for one in (weight, bias, mean, variance)]
    of_weight, of_bias = torch.empty_like(channels[0]), torch.empty_like(channels[0])
    call("norm_relu_gradient", (grid, grad, factors, out, *channels, of_weight, of_bias), eps, *_counts(grid))
    return out, of_weight, of_bias


def _counts(grid: Tensor) -> tuple[bool, int, int, int]:
    """Whether it is bf16; pixels of all images and of one, and channels."""
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
        if _by_torch(grad):

            def plainly(grid: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                return F.relu(_normed(grid, weight, bias, ctx.eps))

            return *_differentiably(plainly, (grid, weight, bias), ctx.needs_input_grad, grad), None
        grid, grad = laid(grid, grad.dtype), laid(grad, grad.dtype)
        return *_norm_relu_gradient(grid, grad, weight, bias, mean, variance, ctx.eps), None


@register_notrace_module
class NormRelu2d(BatchNormAct2d):  # type: ignore[misc]  # timm has no types
    """BatchNorm, then ReLU: timm's, by our kernel where it trains on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if self.trains_by_kernel(x, weight, bias):
            out, mean, variance = _NormRelu.apply(x, weight, bias, self.eps)
            self.follow(mean, variance, x[:, 0].numel())
            return out
        return super().forward(x)

    def trains_by_kernel(self, grid: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
        """Whether this forward pass with these weights is the kernel's."""
        return (
            self.training
            and self.track_running_stats
            and self.momentum is not None
            and torch.is_grad_enabled()
            and serves(grid, weight, bias)
            and weight.requires_grad  # type: ignore[union-attr]
            and bias.requires_grad  # type: ignore[union-attr]
            and weight.shape == bias.shape == (grid.shape[1],)  # type: ignore[union-attr]
            and grid[:, 0].numel() > 1
            and all(is_plain(one, torch.float32) for one in (self.running_mean, self.running_var))
            and self.num_batches_tracked is not None
            and type(self.act) is nn.ReLU
            and type(self.drop) is nn.Identity
            and untouched(self.act, self.drop)
        )

    def follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """The running statistics move towards those of a batch of `count` numbers a channel."""
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


class _Mix(torch.autograd.Function):
    """grid + factors x ReLU(BatchNorm(convolution of the grid)), depthwise or 1x1; and the batch's statistics.

    In one operation: the residual is added where the numbers are at hand, in both directions. factors: one for each
    image, or None.
    """

    @staticmethod
    def forward(
        ctx: Any, grid: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor, eps: float, factors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        mixed = laid(_convolved(grid, kernel), grid.dtype)
        out, mean, variance = _norm_relu(mixed, weight, bias, eps, grid, factors)
        ctx.save_for_backward(grid, kernel, mixed, weight, bias, mean, variance)
        ctx.eps, ctx.factors = eps, factors
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):
            return *_Mix.gradients(ctx, grad, *ctx.saved_tensors), None, None

    @staticmethod
    def gradients(
        ctx: Any, grad: Tensor, grid: Tensor, kernel: Tensor, mixed: Tensor, weight: Tensor, bias: Tensor,
        mean: Tensor, variance: Tensor,
    ) -> Sequence[Tensor | None]:  # fmt: skip
        """Of the grid, the convolution's kernel and the norm's weight and bias."""
        if _by_torch(grad):

            def plainly(grid: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                change = F.relu(_normed(_convolved(grid, kernel), weight, bias, ctx.eps))
                return grid + (change if ctx.factors is None else change * ctx.factors.reshape(-1, 1, 1, 1))

            return _differentiably(plainly, (grid, kernel, weight, bias), ctx.needs_input_grad, grad)
        grid, mixed, grad = (laid(one, grad.dtype) for one in (grid, mixed, grad))
        of_mixed, of_weight, of_bias = _norm_relu_gradient(
            mixed, grad, weight, bias, mean, variance, ctx.eps, ctx.factors
        )
        if kernel.shape[-1] > 1:
            of_grid = _convolved(of_mixed, kernel.flip(2, 3)).add_(grad)
            of_kernel = _weight_gradient(grid, of_mixed, kernel.shape[-1])
        else:
            # A product of pixels and channels, to which the residual's gradient is added while it is at hand.
            by = kernel[:, :, 0, 0].to(grid.dtype)
            pixels = torch.addmm(_pixels(grad).flatten(0, 2), _pixels(of_mixed).flatten(0, 2), by)
            of_grid = pixels.view_as(_pixels(grid)).permute(0, 3, 1, 2)
            of_kernel = torch.ops.aten.convolution_backward(
                of_mixed, grid, kernel.to(grid.dtype), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
                [False, True, False],
            )[1].float()  # fmt: skip
        return of_grid, of_kernel, of_weight, of_bias


def _normed(grid: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """BatchNorm by the grid's own statistics, by torch, whose gradient misreads strided weights (2.14)."""
    return F.batch_norm(grid, None, None, weight.contiguous(), bias.contiguous(), True, 0.0, eps)


def _convolved(grid: Tensor, kernel: Tensor) -> Tensor:
    """Depthwise with zeros around, or 1x1, in the precision of the grid."""
    pad, groups = kernel.shape[-1] // 2, grid.shape[1] // kernel.shape[1]
    return F.conv2d(grid, kernel.to(grid.dtype), padding=pad, groups=groups)


def _pixels(grid: Tensor) -> Tensor:
    """A channels-last grid as (count, height, width, channels)."""
    return grid.permute(0, 2, 3, 1)


def mix(grid: Tensor, convolution: nn.Module, norm: nn.Module, drop_path: nn.Module) -> Tensor:
    """grid + drop_path(norm(convolution(grid))), half a ConvMix block: where it trains on a CPU, as one operation.

    drop_path: timm's DropPath multiplies what it is given by a factor for each image.
    """
    if not _mixes(grid, convolution, norm, drop_path):
        mixed: Tensor = drop_path(norm(convolution(grid)))
        return grid + mixed
    factors = None
    if drop_path.drop_prob:
        factors = drop_path(torch.ones(len(grid), dtype=torch.float32, device="cpu"))
    out, mean, variance = _Mix.apply(lowered(grid), convolution.weight, norm.weight, norm.bias, norm.eps, factors)
    norm.follow(mean, variance, grid[:, 0].numel())  # type: ignore[operator]
    return out


def _mixes(grid: Tensor, convolution: nn.Module, norm: nn.Module, drop_path: nn.Module) -> bool:
    """Whether the kernels serve, and nothing but these parts' own forward passes would be called."""
    if followed() or not (isinstance(convolution, nn.Conv2d) and isinstance(norm, NormRelu2d)):
        return False
    kernel, used = convolution.weight, lowered(grid)
    return (
        untouched(convolution, norm, drop_path)
        and type(drop_path) is DropPath
        and convolution.bias is None
        and norm.trains_by_kernel(used, norm.weight, norm.bias)
        and (
            convolution.trains_by_kernel(used, kernel, None)
            if isinstance(convolution, DepthwiseConv2d)
            else kernel.requires_grad
            and is_plain(kernel, torch.float32)
            and kernel.shape == (grid.shape[1], grid.shape[1], 1, 1)
            and convolution.stride == (1, 1)
            and convolution.padding == (0, 0)
        )
    )


_FORWARD = {kind: kind.forward for kind in (nn.Conv2d, DepthwiseConv2d, NormRelu2d, DropPath, nn.ReLU, nn.Identity)}


def untouched(*modules: nn.Module) -> bool:
    """Whether a call of each module does what its class does and nothing else, so that it can be left out."""
    return not _has_any_global_hook() and not any(  # type: ignore[no-untyped-call]
        _FORWARD.get(type(module)) is not type(module).forward
        or "forward" in vars(module)
        or module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or module._compiled_call_impl is not None
        for module in modules
    )


@register_notrace_function
def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention (batch, heads, queries, width) of queries to keys and values (batch, heads, count, width)."""
    if trains_faster_plain(query, key):
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        return scores.softmax(-1).to(value.dtype) @ value
    if autocasts(query):
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    return F.scaled_dot_product_attention(query, key, value)


def trains_faster_plain(query: Tensor, key: Tensor) -> bool:
    """Whether these are few enough for plain products, whose gradient takes memory of queries x keys."""
    return (
        isinstance(query, Tensor)
        and query.is_cpu
        and query.requires_grad
        and torch.is_grad_enabled()
        and not followed()
        and not torch_alone()
        and query.shape[-2] * key.shape[-2] <= PLAIN.get(query.dtype, 0)
    )


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast would lower the precision of what a CPU does with the tensor, as it does but for fp64."""
    return (
        isinstance(tensor, Tensor)
        and tensor.is_cpu
        and torch.is_autocast_enabled("cpu")
        and tensor.dtype != torch.float64
    )


def lowered(grid: Tensor) -> Tensor:
    """The grid in the precision of autocast, if that is on."""
    return grid.to(torch.get_autocast_dtype("cpu")) if autocasts(grid) else grid
