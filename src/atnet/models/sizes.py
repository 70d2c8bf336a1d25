"""The size table of the family, and models' names. Free of torch, so that a command can print it at once."""

import difflib
import re
from dataclasses import fields, replace
from typing import Any

from atnet.errors import ConfigError
from atnet.models.layout import Size, parse_field
from atnet.models.legacy import OLD_FIELDS, current_fields
from atnet.models.published import PUBLISHED

FIELDS = tuple(field.name for field in fields(Size))

FAMILY = {
    "xxxs": Size(depths=(2, 6, 11), dims=(48, 96, 192), attention_depths=(0, 2), heads=6),
    "xxs": Size(depths=(2, 6, 13), dims=(48, 128, 256), attention_depths=(0, 2), heads=8),
    "xs": Size(depths=(2, 8, 15), dims=(48, 144, 288), attention_depths=(0, 2), heads=9),
    "s": Size(depths=(2, 8, 16), dims=(64, 256, 512), attention_depths=(3, 3), heads=16),
    "l": Size(depths=(2, 10, 20), dims=(80, 320, 640), attention_depths=(5, 4), heads=20),
}
"""The sizes of one decision head, from the smallest on: stages at strides 4, 8 and 16."""

STAR = "_star"
"""Behind a size's name: with a decision head on each register token, besides the class token's."""

SIZES: dict[str, Size] = {
    **{
        name + star: replace(size, decision_heads=size.registers if star else 0)
        for name, size in FAMILY.items()
        for star in ("", STAR)
    },
    **PUBLISHED,
}


def split_name(name: str) -> tuple[str, dict[str, Any]]:
    """A size with changes, "xxxs+kernel=7+depths=2,6,9", as the size and the changes of its layout.

    A star behind a size, "s*", is short for "s_star".  Names of fields that are no more are understood, see `legacy`.
    Raises ConfigError naming what cannot be changed so.
    """
    base, *changes = name.split("+")
    base = re.sub(r"\*$", STAR, base)
    if not changes:
        return base, {}
    size = SIZES.get(base.removeprefix("atnet_"))
    if size is None:
        raise ConfigError(f"{name}: only AT-Net's own sizes take changes, and {base} is none: {', '.join(SIZES)}")
    found: dict[str, Any] = {}
    for change in changes:
        field, equals, value = change.partition("=")
        if not equals or field not in (*FIELDS, *OLD_FIELDS):
            near = difflib.get_close_matches(field, FIELDS, 1) or [", ".join(FIELDS)]
            raise ConfigError(f"{name}: {change!r} changes nothing of a layout; as {base}+kernel=7: {near[0]}")
        try:
            found[field] = value if field in OLD_FIELDS else parse_field(field, value)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}; {base} has {written(getattr(size, field))}") from error
    try:
        return base, current_fields(size, found)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def written(value: Any) -> str:
    """A field's value as a name has it: 2,6,11."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def layout_of(name: str) -> Size | None:
    """The layout that a model's name means, changes made; None of an architecture of timm's."""
    base, changes = split_name(name)
    size = SIZES.get(base.removeprefix("atnet_"))
    return replace(size, **changes) if size else None
