"""A pytest plugin that points timm's own model tests at AT-Net: `pytest -p atnet_peer timm/tests/test_models.py`.

`timm.list_models` answers with the AT-Net names, so that every test over "all models" runs over ours,
and tests of other models are left out. Tests that cannot apply are left out by name, see LEFT_OUT.
"""

import pytest
import timm

import atnet.timm

NAMES = sorted(atnet.timm.default_cfgs)
LEFT_OUT = {
    # It asks for a spatial output: timm holds its own token models (`vit_*`) out of it, too, and tests them, as us,
    # with test_model_default_cfgs_non_std.
    "test_model_default_cfgs",
    # TorchScript, which torch has deprecated.
    "test_model_forward_torchscript",
    "test_model_forward_fx_torchscript",
}


def list_models(family: str = "", *, pretrained: bool = False, **filters: object) -> list[str]:
    """Ours; none where the test asks for pretrained weights or for one family of timm's by name."""
    return [] if family or pretrained else NAMES


timm.list_models = list_models


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def ours(item: pytest.Item) -> bool:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        return params.get("model_name") in NAMES and item.originalname not in LEFT_OUT

    config.hook.pytest_deselected(items=[item for item in items if not ours(item)])
    items[:] = [item for item in items if ours(item)]
