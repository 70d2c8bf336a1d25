"""A device that is none: tensors that say they are on a GPU, or a Mac's, compute on the CPU, and refuse what it does.

CUDA refuses to mix its tensors with the CPU's, MPS has no float64 besides. `StandIn` counts what is sent to the device
and how often the program waits for it, so that the cost of a step can be seen without the hardware.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.overrides import TorchFunctionMode
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype
from torch.utils._pytree import tree_flatten, tree_map_only

aten: Any = torch.ops.aten
MOVED = (Tensor.to, Tensor.cpu, Tensor.cuda)
MIXES = {"aten::copy_", "aten::index", "aten::index_put_", "aten::index_put"}
"""Operations that take tensors of two devices: a copy, and places on the CPU."""
WAITS = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero", "aten::masked_select"}
"""Operations whose answer the program cannot do without."""


class StandIn(TorchFunctionMode):
    """While entered, the device is there.

    kernels: names of the operations computed on it since `clear`, views left out.  waits: of those it was waited for.
    """

    active: "StandIn"

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.device = torch.device("cuda", 0) if kind == "cuda" else torch.device(kind)
        self.clear()

    def clear(self) -> None:
        self.kernels: list[str] = []
        self.waits: list[str] = []

    def __enter__(self) -> "StandIn":
        StandIn.active = self
        super().__enter__()
        return self

    def is_own(self, device: Any) -> bool:
        return device is not None and torch.device(device).type == self.device.type

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in MOVED:
            return self._move(func, args, kwargs)
        if self.is_own(kwargs.get("device")):
            kwargs["device"] = "cpu"
            return tree_map_only(Tensor, _Up.apply, func(*args, **kwargs))
        if func is one_hot and isinstance(args[0], OnDevice):
            # Inside, C++ makes a tensor on what it takes for the device.
            return OnDevice(one_hot(args[0].inner, *args[1:], **kwargs))
        if func in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], OnDevice):
            raise TypeError(f"can't convert {self.device} device type tensor to numpy")
        return func(*args, **kwargs)

    def _move(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        tensor, lets_go = args[0], False
        if func is Tensor.to:
            given = {name: value for name, value in kwargs.items() if name != "memory_format"}
            if len(args) > 1 and isinstance(args[1], Tensor):
                target, dtype = args[1].device, args[1].dtype
            else:
                target, dtype, lets_go, _ = torch._C._nn._parse_to(*args[1:], **given)
        else:
            target, dtype = torch.device("cpu" if func is Tensor.cpu else "cuda"), None
        here = isinstance(tensor, OnDevice)
        there = here if target is None else self.is_own(target)
        if here and not there:
            self.waits.append("aten::_to_copy")
            tensor = _Down.apply(tensor)
        if there and not here and not lets_go:
            self.waits.append("aten::_to_copy")
        how = {name: kwargs[name] for name in ("copy", "memory_format") if name in kwargs}
        with torch._C.DisableTorchFunction():
            moved = tensor.to(dtype=dtype or tensor.dtype, **how)
        return moved if here or not there else _Up.apply(moved)


class OnDevice(Tensor):
    """A tensor of the stand-in; its numbers are in `inner`, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        if inner.dtype == torch.float64 and StandIn.active.device.type == "mps":
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype
        )
        made.inner = inner
        return made

    device = property(lambda self: StandIn.active.device)
    is_cpu = property(lambda self: False)
    is_cuda = property(lambda self: StandIn.active.device.type == "cuda")

    def __repr__(self) -> str:
        return f"OnDevice({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name
        given = [part for part in tree_flatten((args, kwargs))[0] if isinstance(part, Tensor)]
        others = [part for part in given if not isinstance(part, OnDevice) and part.ndim]
        if others and name not in MIXES:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{StandIn.active.device} and cpu! ({name})"
            )
        known = {id(part.inner): part for part in given if isinstance(part, OnDevice)}
        bare_args, bare_kwargs = tree_map_only(OnDevice, lambda part: part.inner, (args, kwargs))
        if StandIn.active.is_own(bare_kwargs.get("device")):
            bare_kwargs["device"] = torch.device("cpu")
        found = func(*bare_args, **bare_kwargs)
        returns = func._schema.returns
        if not (returns and returns[0].alias_info is not None and not returns[0].alias_info.is_write):
            StandIn.active.kernels.append(name)
        picks = name == "aten::index" and any(
            isinstance(place, Tensor) and place.dtype == torch.bool for place in bare_args[1]
        )
        if name in WAITS or picks:
            StandIn.active.waits.append(name)
        return tree_map_only(Tensor, lambda part: known[id(part)] if id(part) in known else OnDevice(part), found)


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return OnDevice(tensor.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.inner  # type: ignore[attr-defined]


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.inner.clone()  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return OnDevice(gradient)


def _by_device(tensors: list[list[Tensor]]) -> dict[Any, Any]:
    """Torch's groups of tensors, by what they say their device is: C++ has another opinion."""
    found = _group_tensors_by_device_and_dtype(tensors)
    return {(group[0][0][0].device, dtype): group for (_, dtype), group in found.items()}


class _Generator(torch.Generator):
    def __new__(cls, device: Any = "cpu") -> "_Generator":
        return super().__new__(cls, "cpu")


@contextmanager
def stand_in(kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The device, for all of the package."""
    import atnet.device

    swapped = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    monkeypatch.setattr(torch.mps, "manual_seed", lambda seed: None)
    monkeypatch.setattr("torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # which has no tensors of subclasses
    monkeypatch.setattr(torch, "Generator", _Generator)
    monkeypatch.setattr(torch.nn.utils.clip_grad, "_group_tensors_by_device_and_dtype", _by_device)
    monkeypatch.setattr(atnet.device, "present_devices", lambda: [kind, "cpu"])
    try:
        with StandIn(kind) as device:
            yield device
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swapped)
