import pytest
import timm
import torch

from atnet import create_model
from atnet.config import make_config
from atnet.training.muon import Muon, orthogonal
from atnet.training.optim import decay_groups, lr_at, make_optimizers

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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", ["xxxs", "mobilenetv3_small_100"])
def test_a_step_moves_every_parameter(name, optimizer):
    torch.manual_seed(0)
    model = create_model(name, num_classes=3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizers = make_optimizers(model, make_config(optim={"name": optimizer}).optim)
    model(torch.randn(4, 3, 64, 64)).logsumexp(1).sum().backward()
    for one in optimizers:
        one.step()
    assert [n for n, p in model.named_parameters() if torch.equal(p, before[n])] == []


def test_muon_takes_the_matrices_between_input_and_classifier():
    model = create_model("xxxs", num_classes=10)
    muon, adamw = make_optimizers(model, make_config(optim={"name": "muon"}).optim)
    names = {id(p): n for n, p in model.named_parameters()}
    taken = {names[id(p)] for p in muon.param_groups[0]["params"]}
    assert {"stem.0.conv.weight", "stages.1.blocks.0.pointwise.weight", "encoder.1.mlp.fc1.weight"} <= taken
    assert not [n for n in taken if "depthwise" in n or "position" in n or "head" in n or not n.endswith("weight")]
    decayed, others = adamw.param_groups
    assert "head.weight" in {names[id(p)] for p in decayed["params"]}
    assert len(taken) + len(decayed["params"]) + len(others["params"]) == len(names)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("shape", [(3, 40, 90), (2, 90, 40), (1, 48, 64)])
def test_orthogonal_keeps_singular_vectors_and_makes_values_one(shape, dtype, tolerance):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made = orthogonal(matrices.to(dtype)).float()
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ made @ vh.mT
    values = inner.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.3
    assert values.max() < 1.3
    assert values.mean() == pytest.approx(0.9, abs=0.1)
    assert (inner - torch.diag_embed(values)).abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_agrees_with_torchs(dtype):
    """Torch's takes two dimensions, and iterates in bf16: hence the tolerance."""
    generator = torch.Generator().manual_seed(0)
    begin = [torch.randn(shape, generator=generator) for shape in ((48, 96), (96, 48), (48, 96))]
    ours = [torch.nn.Parameter(t.clone()) for t in begin]
    theirs = [torch.nn.Parameter(t.clone()) for t in begin]
    mine = Muon(ours, lr=0.01, weight_decay=0.1, dtype=dtype)
    peer = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(10):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        mine.step()
        peer.step()
    for one, other, first in zip(ours, theirs, begin, strict=True):
        assert (one - other).norm() < 0.02 * (one - first).norm()


def test_muon_refuses_vectors():
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        Muon([torch.nn.Parameter(torch.zeros(5))], lr=0.1)
