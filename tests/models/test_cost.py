import pytest

from atnet.models.cost import cost_of, parts_of


def test_multiply_adds_count_attention_and_agree_with_published_ones():
    """MobileNetV3-small 1.0: 56M (Howard et al. 2019). ResNet-18: 1,814M, as torchvision states."""
    assert cost_of("mobilenetv3_small_100", 224).macs == pytest.approx(56e6, rel=0.02)
    resnet = cost_of("resnet18", 224)
    assert (resnet.parameters, resnet.macs) == (11_689_512, pytest.approx(1814e6, rel=0.005))
    assert resnet.parameters - resnet.parameters_without_classifier == 512 * 1000 + 1000
    at224, at448 = (cost_of("atnet_s", side).macs for side in (224, 448))
    assert at448 > 4.1 * at224  # attention grows with the square of the tokens


def test_what_is_deployed_costs_less_where_branches_are_merged():
    """RepViT-M0.9 at 1000 classes: 5.5M as it is trained, 5.1M and 0.8G multiply-adds deployed (Wang et al. 2023)."""
    trained, deployed = (cost_of("repvit_m0_9", 224, deployed=one) for one in (False, True))
    assert (trained.parameters, deployed.parameters) == (5_489_328, 5_067_056)
    assert deployed.macs == pytest.approx(0.8e9, rel=0.05)
    assert deployed.macs < trained.macs
    assert deployed.parameters - deployed.parameters_without_classifier == 384 * 1000 + 1000
    merged = cost_of("shvit_s1", 224, deployed=True)
    assert merged.parameters - merged.parameters_without_classifier == 320 * 1000 + 1000
    assert cost_of("xxxs", 64, deployed=True) == cost_of("xxxs", 64), "it has no such branches"


def test_the_parts_make_the_whole():
    parts, whole = parts_of("xs", 160), cost_of("xs", 160)
    assert list(parts)[:7] == ["stem", "stages.0", "stages.1", "stages.2", "encoder", "norm", "head"]
    tokens = 5 * 288
    assert sum(parameters for parameters, _ in parts.values()) + tokens == whole.parameters
    assert sum(macs for _, macs in parts.values()) == whole.macs
