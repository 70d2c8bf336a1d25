"""What only a real GPU shows; elsewhere these tests skip. `make proof-gpu` runs them."""

import pytest
import torch
from safetensors.torch import load_file

import atnet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


@pytest.mark.parametrize("model", ["xxxs", "vit_tiny_patch16_224", "mobilenetv3_small_100"])
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_a_training_learns_on_the_gpu_and_both_devices_evaluate_it_alike(digits, tmp_path, model, precision):
    data = {"source": str(digits), "size": 224 if "vit" in model else 64, "workers": 0}
    run = atnet.train(
        model=model, data=data, epochs=3, batch=20, device="cuda", precision=precision, out=tmp_path / "run",
        drop_path=0.1, augment={"mixup": 0.2, "flip": 0.0}, optim={"accumulate": 2, "lr": 1e-3},
    )  # fmt: skip
    there, here = (atnet.evaluate(run.folder, str(digits), device=device).scores for device in ("cuda", "cpu"))
    assert there.loss == pytest.approx(here.loss, rel=0.02)
    assert (there.predicted == here.predicted).mean() > 0.9
    assert run.record["environment"]["gpu"] == torch.cuda.get_device_name()


def test_deterministic_runs_give_the_same_bits(quick, tmp_path):
    runs = [atnet.train(**quick, device="cuda", deterministic=True, out=tmp_path / name).folder for name in "ab"]
    first, second = (load_file(run / "last.safetensors") for run in runs)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_vectors_and_maps_are_the_cpus(digits, finished_run):
    image = next((digits / "val" / "one").iterdir())
    vectors = [atnet.embed(digits / "val", finished_run, device=device).vectors for device in ("cuda", "cpu")]
    assert vectors[0] == pytest.approx(vectors[1], rel=1e-2, abs=1e-2)
    maps = [atnet.explain(image, finished_run, device=device)[0].maps.gradient for device in ("cuda", "cpu")]
    assert maps[0] == pytest.approx(maps[1], rel=5e-2, abs=5e-2)
