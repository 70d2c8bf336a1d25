"""A pytest plugin that points timm's own model tests at AT-Net: `pytest -p atnet_peer timm/tests/test_models.py`.

`timm.list_models` answers with the AT-Net names, so that every test over "all models" runs over ours,
and tests of other models are left out. The one over-all test that cannot apply is
test_model_default_cfgs, which asks for a spatial output: timm holds its own token models (`vit_*`)
out of it, too, and tests them, as us, with test_model_default_cfgs_non_std.
"""

import pytest
import timm

import atnet.timm

NAMES = sorted(atnet.timm.default_cfgs)


def list_models(family: str = "", *, pretrained: bool = False, **filters: object) -> list[str]:
    """Ours; none where the test asks for pretrained weights or for one family of timm's by name."""
    return [] if family or pretrained else NAMES


timm.list_models = list_models


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def ours(item: pytest.Item) -> bool:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        return params.get("model_name") in NAMES and item.originalname != "test_model_default_cfgs"

    config.hook.pytest_deselected(items=[item for item in items if not ours(item)])
    items[:] = [item for item in items if ours(item)]
