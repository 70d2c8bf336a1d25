"""Names of before version 0.2, in one place: fields of a layout, tensors, parts of the network. Free of torch.

Version 0.1 reads what is refused here.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from atnet.models.layout import DEEPEST, LARGEST, Size, stem_widths, whole_number

GONE = {
    "isolated": False,
    "dense_squeeze": False,
    "gate": False,  # squeeze-and-excitation in each ConvMix block
    "qk_norm": False,
    "layer_scale": 0.0,
    "view_drop_rate": 0.0,
}
"""Options that are no more, and the value that meant "without"."""

OLD_FIELDS: dict[str, type] = {
    "early_mix": int, "conv_mix": int, "late_mix": int, "trans_mix": int, "class_attention": int, "patch": int,
    "squeeze": int, "conv_dim": int, "dim": int, "stem": str, "norm_first": bool, "residual": str,
    **{name: type(value) for name, value in GONE.items()},
}  # fmt: skip
"""Fields of a layout that were, and their types."""

PARTS = {
    "conv_mix": ("stages.1.blocks",),
    "squeeze": ("stages.2.downsample", "stages.2.position"),
    "late_mix": ("stages.2.blocks",),
    "trans_mix": ("encoder",),
}
"""Parts of the network by their former names, as `--freeze` has them."""

_TENSORS = (
    (r"^conv_mix\.", "stages.1.blocks."),
    (r"^squeeze\.reduce\.0\.", "stages.2.downsample.depthwise."),
    (r"^squeeze\.reduce\.1\.", "stages.2.downsample.pointwise."),
    (r"^squeeze\.reduce\.2\.", "stages.2.downsample.norm."),
    (r"^squeeze\.position\.", "stages.2.position."),
    (r"^late_mix\.", "stages.2.blocks."),
    (r"^trans_mix\.", "encoder."),
)


def current_names(names: Iterable[str]) -> dict[str, str]:
    """The names of a network's tensors, each with the one that it has now."""
    names = list(names)
    if "squeeze.position.weight" not in names:  # each network had it
        return {name: name for name in names}
    # A stem of several steps had the first stage's blocks before its last step, which is the second stage's now.
    matches = (re.fullmatch(r"stem\.([0-9]{1,3})\.conv\.weight", name) for name in names)
    steps = sorted(int(match[1]) for match in matches if match)
    last = steps[-1] if len(steps) > 1 else None
    found = {}
    for name in names:
        new = name
        if last is not None and (parts := re.fullmatch(r"stem\.([0-9]{1,3})\.(.+)", name)):
            number, rest = int(parts[1]), parts[2]
            if number == last:
                new = f"stages.1.downsample.{rest}"
            elif number not in steps:
                new = f"stages.0.blocks.{number - len(steps) + 1}.{rest}"
        for pattern, replacement in _TENSORS:
            new = re.sub(pattern, replacement, new)
        found[name] = new
    return found


def current_state(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A network's tensors by the names that they have now; itself if it has them."""
    names = current_names(state)
    if all(old == new for old, new in names.items()):
        return state
    return {names[name]: tensor for name, tensor in state.items()}


def current_fields(size: Size, changes: dict[str, Any]) -> dict[str, Any]:
    """Changes of a size's layout, the former fields among them as what they are now.

    A former field's value is of its type, or text.  Raises ValueError on what is no more, naming it.
    """
    new = {name: value for name, value in changes.items() if name not in OLD_FIELDS}
    old = {name: _converted(name, value) for name, value in changes.items() if name in OLD_FIELDS}
    if not old:
        return new
    for name, without in GONE.items():
        if old.pop(name, without) != without:
            raise ValueError(f"{name} is gone, for it did not help; version 0.1 has it")
    had: dict[str, Any] = {
        "early_mix": size.depths[0], "conv_mix": size.depths[1], "late_mix": size.depths[2],
        "trans_mix": sum(size.attention_depths), "class_attention": size.attention_depths[1],
        "patch": size.strides[0] * size.strides[1], "squeeze": size.strides[2],
        "conv_dim": size.dims[1], "dim": size.dims[2],
        "stem": "patch" if size.convmixer else "overlap", "norm_first": not size.convmixer,
        "residual": "depthwise" if size.convmixer else "both",
    } | old  # fmt: skip
    kind = (had["stem"], had["norm_first"], had["residual"])
    convmixer = had["stem"] == "patch"
    if kind not in (("overlap", True, "both"), ("patch", False, "depthwise")):
        raise ValueError(
            f"stem={kind[0]} with norm_first={str(kind[1]).lower()} and residual={kind[2]} is gone: use convmixer=true "
            "for the published design, or version 0.1"
        )
    if had["class_attention"] > had["trans_mix"]:
        raise ValueError(f"class_attention={had['class_attention']} of trans_mix={had['trans_mix']} layers: use fewer")
    patch, narrow = had["patch"], had["conv_dim"]
    if convmixer or patch < 4:
        strides, first = (patch, 1, had["squeeze"]), narrow
        if had["early_mix"]:
            raise ValueError(f"early_mix={had['early_mix']} in a stem of one step")
    else:
        steps = patch.bit_length() - 1
        if patch != 2**steps:
            raise ValueError(f"patch={patch} is no power of two: use one, or convmixer=true")
        widths = [min(max(24, narrow // 8) * 2**step, narrow) for step in range(steps - 1)]
        strides, first = (patch // 2, 2, had["squeeze"]), widths[-1]
        if stem_widths(first, patch // 2) != widths:
            raise ValueError(f"conv_dim={narrow} with patch={patch} had a stem of widths {widths}: use dims, strides")
    return {
        "depths": (had["early_mix"], had["conv_mix"], had["late_mix"]),
        "dims": (first, narrow, had["dim"]),
        "strides": strides,
        "attention_depths": (had["trans_mix"] - had["class_attention"], had["class_attention"]),
        "convmixer": convmixer,
    } | new


def _converted(name: str, value: Any) -> Any:
    kind = OLD_FIELDS[name]
    if kind is int:
        least = int(name in ("patch", "conv_dim", "dim", "squeeze"))
        return whole_number(name, str(value), least, DEEPEST if name.endswith(("mix", "class_attention")) else LARGEST)
    if kind is float:
        return float(value)
    if kind is bool and isinstance(value, str):
        if value not in ("true", "false"):
            raise ValueError(f"{name}={value}: neither true nor false")
        return value == "true"
    return value
