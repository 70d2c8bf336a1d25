import ctypes
import itertools
import multiprocessing
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from atnet.config import make_config
from atnet.data.loader import LONGEST_WAIT, NO_LABEL, TrainSet, batches_of, eval_loader, train_loader
from atnet.data.order import BatchOrder, Draw, balanced_order, epoch_order
from atnet.data.preprocess import make_preprocess
from atnet.data.sources import open_parts
from atnet.errors import TrainingError

ALL_ON = {"crop_scale": 0.3, "randaugment": 2, "erasing": 0.5}


def config(digits, **data):
    return make_config(batch=16, seed=3, augment=ALL_ON, data={"source": str(digits), "size": 32, "workers": 0, **data})


def batches(digits, first=0, last=6, **data):
    made = config(digits, **data)
    return list(train_loader(open_parts(str(digits), 0.2)[0], made, first, last))


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x[:2], y[:2], strict=True)
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(digits, workers):
    assert same(batches(digits), batches(digits, workers=workers))


def test_loader_processes_wait_for_the_end_of_a_step_and_not_for_ever(digits, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10**6)
    loader = train_loader(open_parts(str(digits), 0.2)[0], config(digits, workers=2), 0, 6)
    free = loader.dataset.free
    among = batches_of(loader)
    seen = [next(among)]
    assert not free.value  # a step is taken now
    seen += among  # it never ends, for the loader is asked again; each image is read all the same
    assert same(seen, batches(digits))
    assert train_loader(open_parts(str(digits), 0.2)[0], config(digits), 0, 6).dataset.free is None


def test_an_image_waits_until_the_processor_is_free(digits):
    free = ctypes.c_bool(False)
    samples = TrainSet(open_parts(str(digits), 0.2)[0], config(digits), free)
    found = []
    reader = threading.Thread(target=lambda: found.append(samples[Draw(0, 3, 0)][0]))
    reader.start()
    assert not found  # it waits
    free.value = True
    reader.join()
    assert torch.equal(found[0], samples.at(3, Draw(0, 3, 0))[0])


def test_a_loader_process_that_is_killed_while_it_waits_is_noticed(digits, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10**6)
    among = batches_of(train_loader(open_parts(str(digits), 0.2)[0], config(digits, workers=2), 0, 200))
    next(among)
    time.sleep(LONGEST_WAIT / 2)  # both wait for the end of this step
    multiprocessing.active_children()[0].kill()
    with pytest.raises(TrainingError, match="use fewer --data.workers"):
        list(among)


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


@pytest.mark.parametrize("crop_scale", [0.3, 1.0])
def test_training_crops_grow_from_epoch_to_epoch(digits, crop_scale):
    made = make_config(
        batch=100,
        epochs=4,
        augment=ALL_ON | {"crop_scale": crop_scale},
        data={"source": str(digits), "size": 48, "first_size": 20, "workers": 0},
    )
    train, _ = open_parts(str(digits), 0.2)
    Path(train.locate(0)).write_bytes(b"no image")
    found = list(train_loader(train, made, 0, 8))
    assert [pixels.shape for pixels, _, _ in found] == [
        (100, 3, side, side) for side in (20, 20, 32, 32, 32, 32, 48, 48)
    ]
    assert sum(len(holes) for _, _, holes in found) == 4


def test_epochs_and_seeds_differ():
    assert epoch_order(0, 0, 50) != epoch_order(0, 1, 50)
    assert epoch_order(0, 0, 50) != epoch_order(1, 0, 50)
    assert sorted(epoch_order(0, 4, 50)) == list(range(50))


def test_an_epoch_of_many_batches_shows_no_sample_twice():
    keys = list(BatchOrder(seed=0, count=165, batch=8, first=0, last=40))
    first = list(itertools.chain.from_iterable(keys[:20]))
    assert len(set(first)) == 160
    assert {draw.epoch for draw in first} == {0}
    assert {draw.epoch for draw in itertools.chain.from_iterable(keys[20:])} == {1}


@pytest.mark.parametrize(("count", "batch", "steps"), [(50, 8, 7), (3, 8, 1), (16, 8, 2), (20, 64, 1)])
def test_an_epoch_of_few_batches_shows_every_sample(count, batch, steps):
    keys = list(BatchOrder(seed=0, count=count, batch=batch, first=0, last=2 * steps))
    assert {len(one) for one in keys} == {batch}
    first = list(itertools.chain.from_iterable(keys[:steps]))
    assert {draw.image for draw in first} == set(range(count))
    assert {draw.epoch for draw in first} == {0}
    assert len(set(first)) == len(first), "what is shown again is augmented anew"
    most = max(draw.repeat for draw in first)
    assert most == -(-steps * batch // count) - 1
    assert {draw.epoch for one in keys[steps:] for draw in one} == {1}


@pytest.mark.parametrize("cache", [True, False])
def test_evaluation_sees_each_image_once_in_order(digits, cache):
    _, val = open_parts(str(digits), 0.2)
    preprocess = make_preprocess(config(digits).data)
    seen = list(eval_loader(val, preprocess, batch=16, workers=0, cache=cache))
    assert [len(labels) for _, labels, _ in seen] == [16, 16, 16, 2]
    assert torch.cat([labels for _, labels, _ in seen]).tolist() == val.labels.tolist()
    last = torch.cat([images for images, _, _ in seen])[-1]
    assert torch.equal(last, torch.from_numpy(preprocess(val.read(49))))


def test_without_augmentation_training_sees_the_whole_image(digits):
    made = make_config(
        batch=10,
        augment={"crop_scale": 1.0, "flip": 0.0},
        data={"source": str(digits), "size": 28, "crop_pct": 1.0, "workers": 0},
    )
    train, _ = open_parts(str(digits), 0.2)
    images, _, _ = next(iter(train_loader(train, made, 0, 1)))
    index = epoch_order(0, 0, 200)[0]
    expected = torch.tensor(list(train.read(index).get_flattened_data())).view(28, 28, 3).permute(2, 0, 1)
    # A random resized crop also draws an aspect ratio, 3/4 to 4/3; at scale 1 only near squares fit.
    assert (images[0].float() - expected).abs().mean() < 40


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_an_image_that_cannot_be_read_is_a_hole_and_the_others_are_what_they_were(digits, cache):
    made = config(digits, cache=cache)
    train, _ = open_parts(str(digits), 0.2)
    whole = list(train_loader(train, made, 0, 6))
    batch, row = 2, 5
    draw = list(BatchOrder(seed=3, count=200, batch=16, first=0, last=6))[batch][row]
    Path(train.locate(draw.image)).write_bytes(b"no image")
    broken = list(train_loader(train, made, 0, 6))
    for number, ((pixels, labels, holes), (had, said, none)) in enumerate(zip(broken, whole, strict=True)):
        keep = torch.ones(16, dtype=torch.bool)
        keep[row] = number != batch
        assert torch.equal(pixels[keep], had[keep])
        assert torch.equal(labels[keep], said[keep])
        assert none == []
        assert [hole.image for hole in holes] == ([train.ids[draw.image]] if number == batch else [])
    assert broken[batch][1][row] == NO_LABEL
    assert "no image" not in broken[batch][2][0].reason
    assert "text, not a whole JPEG" in broken[batch][2][0].reason


def test_a_balanced_epoch_shows_each_class_equally_often():
    labels = np.repeat([0, 1, 2], [80, 15, 5])
    order = balanced_order(0, 0, labels)
    assert np.bincount(labels[order]).tolist() in ([34, 33, 33], [33, 34, 33], [33, 33, 34])
    assert set(np.flatnonzero(labels > 0)) <= set(order)
    assert order != balanced_order(0, 1, labels)
    draws = list(
        itertools.chain.from_iterable(BatchOrder(seed=0, count=100, batch=10, first=0, last=10, labels=labels))
    )
    assert len(set(draws)) == 100
    assert max(draw.repeat for draw in draws if labels[draw.image] == 2) == 6


def test_an_image_shown_again_is_augmented_anew(digits):
    train_set = TrainSet(open_parts(str(digits), 0.2)[0], config(digits))
    first, again, later = (train_set.at(0, draw)[0] for draw in (Draw(0, 0), Draw(0, 0, 1), Draw(1, 0)))
    assert not torch.equal(first, again)
    assert not torch.equal(first, later)
    assert torch.equal(first, train_set.at(0, Draw(0, 0))[0])


def test_where_shared_memory_is_full_batches_are_the_same(digits, monkeypatch, caplog):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    samples, made = open_parts(str(digits), 0.2)[0], config(digits, workers=2)
    expected = list(batches_of(train_loader(samples, made, 0, 6)))
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # and in the processes, which are forked
    found = list(batches_of(train_loader(samples, made, 0, 6)))
    assert same(found, expected)
    assert [one.stride() for one, _, _ in found] == [one.stride() for one, _, _ in expected]
    assert caplog.text.count("--shm-size") == 1
    preprocess = make_preprocess(made.data)
    plain, piped = ([*batches_of(eval_loader(samples, preprocess, 64, workers))] for workers in (0, 2))
    assert same(plain, piped)


def test_loader_processes_that_cannot_be_started_are_an_error_with_a_remedy(digits, monkeypatch):
    def refused(self):
        raise OSError(28, "No space left on device")

    loader = train_loader(open_parts(str(digits), 0.2)[0], config(digits, workers=2), 0, 6)
    monkeypatch.setattr(type(loader), "__iter__", refused)
    with pytest.raises(TrainingError, match="--data.workers 0"):
        next(batches_of(loader))
