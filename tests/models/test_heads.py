import pytest
import torch

from atnet import create_model
from atnet.models.heads import Adapters, answer, fuse
from atnet.models.sizes import SIZES


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def model():
    return create_model("xxxs_star", num_classes=7).eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 64, 64)


def test_a_star_adds_four_heads_to_any_size_and_little_else():
    for name in ("xxxs", "xxs", "xs", "s", "l"):
        with torch.device("meta"):
            plain, starred = (sum(p.numel() for p in create_model(n).parameters()) for n in (name, f"{name}_star"))
        assert SIZES[f"{name}_star"].decision_heads == 4
        assert 1 < starred / plain < 1.025
    assert SIZES["xxxs"].decision_heads == 0


def test_the_answer_is_the_mean_probability_of_the_heads(model, images):
    with torch.inference_mode():
        each = model.decide(model.forward_features(images))
        together = model(images)
    assert each.shape == (3, 5, 7)
    torch.testing.assert_close(together.softmax(-1), each.softmax(-1).mean(1))


def test_the_first_head_is_that_of_the_network_without_a_star(model, images):
    plain = create_model("xxxs", num_classes=7).eval()
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("adapters")})
    with torch.inference_mode():
        torch.testing.assert_close(model.decide(model.forward_features(images))[:, 0], plain(images))


def test_each_head_reads_its_own_register(model, images):
    tokens = model.forward_features(images).detach()
    before = model.decide(tokens)
    tokens[:, 2] += 1
    changed = (model.decide(tokens) != before).any(2).any(0).tolist()
    assert changed == [False, False, True, False, False]


def test_heads_come_apart_in_training_alone_and_when_asked(model, images):
    assert model.train()(images).shape == (3, 7)
    model.set_separate_heads()
    assert model(images).shape == (3, 5, 7)
    assert model.eval()(images).shape == (3, 7)


def test_the_classifier_is_what_the_heads_share_and_their_adapters(model):
    head, adapters = model.get_classifier()
    assert (head.out_features, len(adapters.each)) == (7, 4)
    model.reset_classifier(3)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    model.reset_classifier(0)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 192)


def test_more_heads_than_registers_is_an_error():
    with pytest.raises(ValueError, match="decision_heads=5 on registers=4"):
        create_model("xxxs", decision_heads=5)


def test_an_adapter_adds_to_its_token():
    adapters = Adapters(16, 2)
    for adapter in adapters.each:
        torch.nn.init.zeros_(adapter.fc2.weight), torch.nn.init.zeros_(adapter.fc2.bias)
    tokens = torch.randn(3, 2, 16)
    assert torch.equal(adapters(tokens), tokens)


def test_fusing_heads_that_agree_changes_nothing():
    logits = torch.randn(4, 7)
    torch.testing.assert_close(fuse(logits[:, None].expand(4, 3, 7)), logits.log_softmax(-1))


def test_fusing_heads_that_exclude_a_class_stays_finite():
    logits = torch.tensor([[300.0, 0.0, -300.0], [299.0, 0.0, -300.0]], requires_grad=True)
    together = fuse(logits)
    assert together.isfinite().all()
    torch.testing.assert_close(together.softmax(-1), torch.tensor([1.0, 0.0, 0.0]))
    together.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert fuse(logits.detach().half()).dtype == torch.float16


def test_a_network_of_one_head_has_none_apart(images):
    plain = create_model("xxxs", num_classes=7).eval()
    with torch.inference_mode():
        together, each = answer(plain, images)
        assert torch.equal(together, plain(images))
    assert each is None
