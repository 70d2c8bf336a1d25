import itertools

import pytest
import torch

from atnet.config import make_config
from atnet.data.loader import eval_loader, make_preprocess, train_loader
from atnet.data.order import BatchOrder, epoch_order
from atnet.data.sources import open_parts

ALL_ON = {"crop_scale": 0.3, "randaugment": 2, "erasing": 0.5}


def config(digits, **data):
    return make_config(batch=16, seed=3, augment=ALL_ON, data={"source": str(digits), "size": 32, "workers": 0, **data})


def batches(digits, first=0, last=6, **data):
    made = config(digits, **data)
    return list(train_loader(open_parts(str(digits), 0.2)[0], made, first, last))


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(digits, workers):
    assert same(batches(digits), batches(digits, workers=workers))


def test_batches_do_not_depend_on_the_cache(digits):
    assert same(batches(digits), batches(digits, cache="ram"))


def test_starting_in_the_middle_gives_the_batches_from_there_on(digits):
    assert same(batches(digits, 0, 30)[13:], batches(digits, 13, 30))


def test_augmentation_leaves_torchs_generator_alone(digits):
    torch.manual_seed(5)
    batches(digits, 0, 2)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))


def test_epochs_and_seeds_differ():
    assert epoch_order(0, 0, 50) != epoch_order(0, 1, 50)
    assert epoch_order(0, 0, 50) != epoch_order(1, 0, 50)
    assert sorted(epoch_order(0, 4, 50)) == list(range(50))


def test_an_epoch_shows_no_sample_twice():
    keys = list(BatchOrder(seed=0, count=50, batch=8, first=0, last=12))
    first = list(itertools.chain.from_iterable(keys[:6]))
    assert len(set(first)) == 48
    assert {epoch for epoch, _ in first} == {0}
    assert {epoch for epoch, _ in itertools.chain.from_iterable(keys[6:])} == {1}


@pytest.mark.parametrize("cache", [True, False])
def test_evaluation_sees_each_picture_once_in_order(digits, cache):
    _, val = open_parts(str(digits), 0.2)
    preprocess = make_preprocess(config(digits).data)
    seen = list(eval_loader(val, preprocess, batch=16, workers=0, cache=cache))
    assert [len(labels) for _, labels in seen] == [16, 16, 16, 2]
    assert torch.cat([labels for _, labels in seen]).tolist() == val.labels.tolist()
    last = torch.cat([images for images, _ in seen])[-1]
    assert torch.equal(last, torch.from_numpy(preprocess(val.read(49))))


def test_without_augmentation_training_sees_the_whole_picture(digits):
    made = make_config(
        batch=10,
        augment={"crop_scale": 1.0, "flip": 0.0},
        data={"source": str(digits), "size": 28, "crop_pct": 1.0, "workers": 0},
    )
    train, _ = open_parts(str(digits), 0.2)
    images, _ = next(iter(train_loader(train, made, 0, 1)))
    index = epoch_order(0, 0, 200)[0]
    expected = torch.tensor(list(train.read(index).get_flattened_data())).view(28, 28, 3).permute(2, 0, 1)
    # A random resized crop also draws an aspect ratio, 3/4 to 4/3; at scale 1 only near squares fit.
    assert (images[0].float() - expected).abs().mean() < 40
