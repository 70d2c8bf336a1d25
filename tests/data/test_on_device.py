"""Images kept on the device, beside those of the loader: the CPU is the device, or stands in for a GPU."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import atnet
from atnet.config import make_config
from atnet.data.augment import OPERATIONS
from atnet.data.augment import operate as by_pillow
from atnet.data.loader import NO_LABEL, TrainSet, collate
from atnet.data.on_device import DeviceImages, operate
from atnet.data.order import Draw
from atnet.data.preprocess import CROP_MODES
from atnet.data.sources import open_configured
from atnet.errors import ConfigError
from device_stand_in import stand_in

CPU = torch.device("cpu")
FILL = (124, 116, 104)
DRAWS = [
    Draw(epoch, image, repeat) for epoch, image, repeat in [(0, 0, 0), (0, 5, 0), (0, 30, 1), (0, 71, 0), (0, 2, 0)]
]


def made(source, interpolation="bicubic", resize="crop", **augment):
    data = {"source": str(source), "size": 64, "cache": "device", "cache_size": 96, "workers": 0}
    return make_config(data=data | {"interpolation": interpolation, "resize": resize}, augment=augment, batch=5)


def both(config, device=CPU):
    """The loader's pixels and those that the device made."""
    samples, _ = open_configured(config.data)
    shown = TrainSet(samples, config)
    theirs = collate([shown.at(draw.image, draw) for draw in DRAWS])
    return theirs, DeviceImages(samples, config, device).at(DRAWS)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", CROP_MODES)
def test_crops_flips_and_erased_places_are_the_loaders_to_the_bit(few_photos, interpolation, resize):
    broken = sorted((few_photos / "train").rglob("*.JPEG"))[5]
    broken.write_bytes(b"no image")
    for path in (few_photos / "train").rglob("*.JPEG"):
        if path != broken:
            Image.open(path).crop((0, 40, 224, 120)).save(path)  # squares look alike whatever they are made of
    config = made(few_photos, interpolation, resize, erasing=0.7, randaugment=0)
    (theirs, labels, holes), (ours, our_labels, our_holes) = both(config)
    assert torch.equal(ours, theirs)
    assert torch.equal(our_labels, labels)
    assert our_labels[1] == NO_LABEL
    assert our_holes == holes
    assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_does_what_pillows_does(photos, name, sign):
    path = next((photos / "val" / "n01440764").iterdir())
    image = Image.open(path).convert("RGB").resize((96, 96))
    given = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    fill = torch.tensor(FILL, dtype=torch.uint8).view(1, 3, 1, 1)
    for magnitude in (5, 9, 15):
        ours = operate(given, name, magnitude, sign, fill)
        theirs = np.asarray(by_pillow(image, name, magnitude, sign, FILL), int)
        assert torch.equal(ours[0], ours[1])
        apart = np.abs(ours[0].permute(1, 2, 0).numpy().astype(int) - theirs)
        assert (apart <= 2).mean() > 0.97  # colours may be rounded otherwise, places only at edges
        assert apart.mean() < 1.5


def test_randaugment_on_the_device_is_near_the_loaders(few_photos):
    (theirs, _, _), (ours, _, _) = both(made(few_photos, randaugment=2, magnitude=9))
    apart = (ours.int() - theirs.int()).abs()
    assert (apart <= 3).float().mean() > 0.95


def test_a_gpu_makes_nearly_the_same_pixels(few_photos, monkeypatch):
    config = made(few_photos, randaugment=1, erasing=0.5)
    (theirs, _, _), _ = both(config)
    with stand_in("cuda", monkeypatch) as device:
        samples, _ = open_configured(config.data)
        kept = DeviceImages(samples, config, device.device)
        device.clear()
        ours, labels, _ = kept.at(DRAWS)
        assert ours.device == device.device
        assert labels.is_cpu
        assert not device.waits
        apart = (ours.cpu().int() - theirs.int()).abs()
    assert (apart <= 3).float().mean() > 0.95


@pytest.fixture
def options(few_photos):
    data = {"source": str(few_photos), "size": 48, "first_size": 32, "cache": "device", "cache_size": 64, "workers": 0}
    return {
        "model": "xxxs+depths=1,1,1", "epochs": 2, "batch": 12, "data": data,
        "augment": {"randaugment": 0, "erasing": 0.3}, "save_minutes": 0.0,
    }  # fmt: skip


def test_a_training_is_that_of_the_cache_in_memory_and_resumes_to_the_bit(options, tmp_path, train_until):
    weights = []
    for cache in ("device", "ram"):
        run = atnet.train(**options | {"data": options["data"] | {"cache": cache}}, out=tmp_path / cache)
        weights.append(load_file(run.folder / "last.safetensors"))
    train_until(2, **options, out=tmp_path / "broken")
    weights.append(load_file(atnet.train(resume=tmp_path / "broken").folder / "last.safetensors"))
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
        assert torch.equal(tensor, weights[2][name]), name


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="data.cache=device makes random crops"):
        made("digits", crop_scale=1)
