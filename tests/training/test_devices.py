"""Training, evaluation and explanation on a GPU and a Mac, as far as a stand-in for these devices shows it."""

from collections import Counter

import numpy as np
import pytest
import torch

import atnet
from atnet.config import make_config
from atnet.data.loader import TrainSet, collate
from atnet.data.preprocess import make_preprocess
from atnet.device import cuda_settings, multiplies_in_bf16, pick_device
from atnet.errors import ConfigError
from atnet.models.load import create_classifier
from atnet.training.faults import _batch
from atnet.training.state import State, train_step
from device_stand_in import stand_in

MODELS = ["xxxs", "vit_tiny_patch16_224", "mobilenetv3_small_100"]


def options(digits, model, **more):
    """Accumulation, mixup, moving average, stochastic depth."""
    return {
        "model": model, "data": {"source": str(digits), "size": 224 if "vit" in model else 64, "workers": 0},
        "epochs": 2, "batch": 8, "drop_path": 0.1, "precision": "fp32", "augment": {"mixup": 0.2},
        "optim": {"accumulate": 2}, **more,
    }  # fmt: skip


def steps(config, count=2):
    """The state after some steps, and what each of them said."""
    state = State(config)
    state.train_mode()
    shown = TrainSet(state.train_images, config)
    said = []
    for _ in range(count):
        pixels, labels, _ = collate([shown.at(draw.image, draw) for draw in _batch(state, state.step)])
        said.append(train_step(state, pixels, labels))
        state.step += 1
    return state, said


def make_weights(folder, model):
    """Random ones that know the digits' classes."""
    torch.manual_seed(1)
    size = 224 if "vit" in model else 64
    names = ["eight", "five", "four", "nine", "one", "seven", "six", "three", "two", "zero"]
    preprocess = make_preprocess(make_config(data={"size": size}).data)
    network = create_classifier(model, classes=10, size=size)
    atnet.save(network, folder / "made.safetensors", class_names=names, preprocess=preprocess, name=model)
    return str(folder / "made.safetensors")


@pytest.fixture
def teacher(tmp_path):
    return make_weights(tmp_path, "xxxs")


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("model", MODELS)
def test_steps_on_a_device_give_what_they_give_on_a_cpu(digits, monkeypatch, kind, model, teacher):
    monkeypatch.setattr("atnet.models.ops.kernels", lambda: None)
    monkeypatch.setattr("atnet.models.ops.torch_alone", lambda: True)
    part = {"xxxs": "stem", "mobilenetv3_small_100": "conv_stem"}.get(model, "patch_embed")
    more = {"teacher": [teacher], "freeze": [part], "label_smoothing": 0.1}
    here, said = steps(make_config(**options(digits, model, **more)))
    with stand_in(kind, monkeypatch):
        there, heard = steps(make_config(**options(digits, model, **more, device=kind)))
        assert there.device.type == kind
        assert heard == said
        for name, network in here.networks.items():
            other = there.networks[name].state_dict()
            for key, value in network.state_dict().items():
                assert torch.equal(other[key].cpu(), value), (name, key)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("model", MODELS)
def test_evaluation_vectors_and_maps_on_a_device(digits, tmp_path, monkeypatch, kind, model):
    image = next((digits / "val" / "one").iterdir())
    weights = make_weights(tmp_path, model)

    def found(device):
        scores = atnet.evaluate(weights, str(digits), workers=0, device=device).scores
        vectors = atnet.embed(digits / "val", weights, workers=0, device=device).vectors
        gradient = None if "vit" in model else atnet.explain(image, weights, device=device)[0].maps.gradient
        return scores, vectors, gradient

    scores, vectors, gradient = found("cpu")
    with stand_in(kind, monkeypatch):
        theirs, their_vectors, their_gradient = found(kind)
    assert (theirs.loss, theirs.top1) == pytest.approx((scores.loss, scores.top1), rel=1e-5)
    np.testing.assert_array_equal(theirs.predicted, scores.predicted)
    np.testing.assert_allclose(their_vectors, vectors, rtol=1e-4, atol=1e-5)
    if gradient is not None:
        np.testing.assert_allclose(their_gradient, gradient, rtol=1e-3, atol=1e-5)


def test_a_step_waits_for_the_device_once_and_its_buffers_are_few_operations(digits, monkeypatch):
    with stand_in("cuda", monkeypatch) as device:
        config = make_config(**options(digits, "xxxs", device="cuda"))
        state, _ = steps(config, count=1)
        draws = _batch(state, state.step)
        pixels, labels, _ = collate([TrainSet(state.train_images, config).at(draw.image, draw) for draw in draws])
        device.clear()
        train_step(state, pixels, labels)
        assert len(device.waits) == 1, device.waits
        counted = Counter(device.kernels)
        norms = len(state.statistics._running) // 2
        assert norms > 20
        assert counted["aten::lerp"] + counted["aten::lerp_"] == 2  # running statistics, by each part's
        assert counted["aten::_foreach_lerp_"] < norms  # the moving average, and Muon's of matrices of one shape each
        assert counted["aten::_foreach_copy_"] == 3  # running statistics, their counts, the average's counts
        assert counted["aten::copy_"] < norms


def test_a_gpu_that_only_emulates_bf16_trains_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not multiplies_in_bf16("auto", torch.device("cuda", 0))
    assert multiplies_in_bf16("bf16", torch.device("cuda", 0))


def test_on_a_gpu_teachers_and_evaluation_multiply_as_training_does(digits, monkeypatch, teacher):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    seen = []
    forward = torch.nn.Linear.forward

    def look(self, x):
        seen.append(torch.is_autocast_enabled("cuda"))
        return forward(self, x)

    with stand_in("cuda", monkeypatch):
        state, _ = steps(make_config(**options(digits, "xxxs", device="cuda", precision="auto", teacher=[teacher])), 0)
        monkeypatch.setattr(torch.nn.Linear, "forward", look)
        state.ask(torch.zeros(1, 3, 64, 64, device="cuda"))
        assert seen
        assert all(seen)
        seen.clear()
        atnet.evaluate(teacher, str(digits), workers=0, device="cuda")
        assert seen
        assert all(seen)


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    present, chosen = ["cuda", "mps", "cpu"], []
    monkeypatch.setattr("atnet.device.present_devices", lambda: present)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto") == torch.device("cuda", 0)  # not torchrun's
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert pick_device("auto") == torch.device("cuda", 1)
    assert chosen == [1]
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="as many processes as there are GPUs"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert pick_device("cuda") == torch.device("cuda", 0)
    present.remove("cuda")
    assert pick_device("auto") == torch.device("cpu")  # gloo has no tensors of a Mac's GPU


@pytest.mark.parametrize(("deterministic", "fp32"), [(False, False), (True, False), (False, True)])
def test_a_gpus_settings_hold_while_it_trains_and_not_after(deterministic, fp32):
    def settings():
        cudnn = torch.backends.cudnn
        return (
            cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
        )  # fmt: skip

    before = settings()
    with cuda_settings(torch.device("cpu"), deterministic=deterministic, fp32=fp32):
        assert settings() == before
    with cuda_settings(torch.device("cuda", 0), deterministic=deterministic, fp32=fp32):
        products = "highest" if fp32 else "high"
        assert settings() == (not deterministic, deterministic, deterministic, products)
    assert settings() == before
