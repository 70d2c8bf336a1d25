import pytest
import timm
import torch

from atnet import create_model
from atnet.config import make_config
from atnet.training.optim import decay_groups, lr_at, make_optimizer

STEPS = 10


def rates(**options):
    made = make_config(optim={"lr": 1.0}, **options)
    return [lr_at(step, STEPS, made) for step in range(made.epochs * STEPS)]


def test_warm_up_is_linear_and_ends_at_the_peak():
    lr = rates(epochs=10, schedule={"warmup": 2, "min_lr": 0})
    assert lr[:20] == pytest.approx([(step + 1) / 21 for step in range(20)])
    assert lr[20] == 1.0 == max(lr)


def test_one_cosine_by_default():
    lr = rates(epochs=10, schedule={"warmup": 0, "min_lr": 0.1})
    assert lr[50] == pytest.approx(0.55)
    assert lr[-1] == pytest.approx(0.1, abs=1e-3)
    assert lr == sorted(lr, reverse=True)


def test_warm_restarts_have_length_multiplier_and_decay():
    lr = rates(epochs=14, schedule={"warmup": 0, "cycle": 2, "multiplier": 2, "decay": 0.5, "min_lr": 0})
    jumps = [step for step in range(1, len(lr)) if lr[step] > lr[step - 1]]
    assert jumps == [20, 60]
    assert [lr[step] for step in (0, 20, 60)] == pytest.approx([1.0, 0.5, 0.25])
    assert lr[40] == pytest.approx(0.25)


def test_a_short_run_still_warms_up_for_at_most_half_of_it():
    lr = rates(epochs=1, schedule={"warmup": 5})
    assert lr.index(max(lr)) == 5


def test_torchs_scheduler_agrees():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=20, T_mult=2, eta_min=0.01)
    ours = rates(epochs=6, schedule={"warmup": 0, "cycle": 2, "multiplier": 2, "min_lr": 0.01})
    for rate in ours:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("name", ["xxxs", "mobilenetv3_small_100", "deit_tiny_patch16_224"])
def test_only_matrices_of_layers_are_decayed(name):
    model = create_model(name, num_classes=10)
    decayed, others = decay_groups(model, 0.05)
    names = {id(p): n for n, p in model.named_parameters()}
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    spared = {names[id(p)] for p in others["params"]}
    assert all(p.ndim in (2, 4) for p in decayed["params"])
    assert {n for n in names.values() if n.endswith("bias") or "token" in n or n == "pos_embed"} <= spared
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)


def test_what_a_model_spares_is_spared():
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=10)
    _, others = decay_groups(model, 0.05)
    spared = {id(p) for p in others["params"]}
    assert all(id(p) in spared for n, p in model.named_parameters() if "relative_position_bias_table" in n)


def test_a_step_moves_every_parameter():
    torch.manual_seed(0)
    model = create_model("xxxs", num_classes=3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = make_optimizer(model, make_config().optim)
    model(torch.randn(4, 3, 32, 32)).logsumexp(1).sum().backward()
    optimizer.step()
    assert [n for n, p in model.named_parameters() if torch.equal(p, before[n])] == []
