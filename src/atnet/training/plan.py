"""What a run will take, from a few real steps: time, memory, disk; epochs to fit a time, a batch to fit memory."""

import contextlib
import dataclasses
import datetime
import itertools
import logging
import math
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from atnet.config import Config, make_config
from atnet.data.digits import DIGITS
from atnet.data.loader import batch_order, eval_loader
from atnet.data.on_device import training_batches
from atnet.data.order import epoch_steps
from atnet.data.samples import Samples
from atnet.data.shards import is_address
from atnet.data.sources import open_configured
from atnet.device import pick_device
from atnet.errors import ConfigError, DataError, TrainingError
from atnet.eval.evaluate import score_together
from atnet.models.cost import cost_of
from atnet.models.load import architecture, create_classifier
from atnet.progress import duration, progress_bar
from atnet.run import loggers
from atnet.run.record import peak_memory_mb
from atnet.training import distributed
from atnet.training.choose import FOLDS, folds_to_train
from atnet.training.pace import AFTERWARDS
from atnet.training.state import State, train_step
from atnet.training.transfer import defaults_of, starting_weights
from atnet.weights.find import find_weights

log = logging.getLogger("atnet")

WARM_STEPS = 2
LEAST_STEPS, MOST_STEPS, ENOUGH_SECONDS = 2, 20, 15.0
EVAL_BATCHES = 4
SHARE_OF_MEMORY = 0.6
LARGEST_BATCH, LEAST_STEPS_PER_EPOCH = 256, 20
BACKWARD, EVALUATION = 2 / 3, 3.0
"""The share of a step that is its backward pass; speed without one, over that of training."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will take. Seconds, MB.

    setup: filling the cache, and the features of the weights' probe.  folds: trainings on two thirds of the images,
    before the run's own.  step, evaluation: one step, one evaluation of all networks. Where training crops grow, step
    is the mean, and memory that of the full ones.
    memory: peak of the training process, on the GPU if it is on one.  free: memory that is there.
    disk: the run folder.
    """

    config: Config
    classes: int
    train_images: int
    val_images: int
    steps_per_epoch: int
    setup: float
    folds: int
    step: float
    evaluation: float
    memory: float
    free: float
    disk: float

    @property
    def epoch(self) -> float:
        return self.steps_per_epoch * self.step + self.evaluation * self.config.evaluations / max(self.config.epochs, 1)

    @property
    def seconds(self) -> float:
        return self.setup + self.config.epochs * (self.comparison + self.epoch)

    @property
    def comparison(self) -> float:
        """For each epoch, what cross-validation trains before."""
        return self.folds * (1 - 1 / FOLDS) * self.steps_per_epoch * self.step

    def within(self, time_budget: datetime.timedelta) -> "Forecast":
        """The same with as many epochs as fit. Raises ConfigError if not one does."""
        seconds = time_budget.total_seconds()
        one, beside = self.comparison + self.epoch, self.setup + AFTERWARDS
        epochs = int((seconds - beside) / one)
        if epochs < 1:
            raise ConfigError(
                f"--time-budget {duration(seconds)} is too short: one epoch takes {duration(beside + one)}; "
                "give more, or a smaller --model or --data.size"
            )
        log.info("--time-budget %s: %d epochs", duration(seconds), epochs)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, epochs=epochs))


def configure(recipe: str | Path | None = None, **options: Any) -> Config:
    """As `make_config`; weights to go on from bring their own defaults, and so do few images."""
    found = defaults_of(make_config(recipe, **options))
    return make_config(recipe, below=found, **options)


def settle(config: Config) -> Config:
    """The configuration with nothing left to find: as `named`, a batch that fits if it was auto, and parts of it for
    each of several processes.
    Raises ConfigError if no images are named.
    """
    config = named(config)
    loggers.check(config.log)
    if not config.data.source:
        raise ConfigError(
            "nothing to train on: give --data FOLDER, one with a folder of images for each class, "
            "or --data digits, the embedded ones"
        )
    if config.optim.accumulate % distributed.world_size():
        parts = math.lcm(config.optim.accumulate, distributed.world_size())
        config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, accumulate=parts))
    if not config.batch:
        if distributed.is_distributed():
            raise ConfigError("--batch auto measures one process, not several: give the batch of all of them together")
        config = dataclasses.replace(config, batch=fitting_batch(config))
    return config


def named(config: Config) -> Config:
    """The configuration with the model's full name and absolute paths, so that a run is resumed from anywhere."""
    source, classes = _absolute(config.data.source), config.data.classes
    unlabelled = tuple(map(_absolute, config.data.unlabelled))
    classes = classes and str(Path(classes).expanduser().resolve())
    return dataclasses.replace(
        config,
        model=architecture(config.model),
        weights=_settled(starting_weights(config)),
        teacher=tuple(map(_settled, config.teacher)),
        data=dataclasses.replace(config.data, source=source, classes=classes, unlabelled=unlabelled),
    )


def _absolute(source: str) -> str:
    """A source by a name that means the same from any folder."""
    if not source or source == DIGITS or is_address(source):
        return source
    return str(Path(source).expanduser().resolve())


def _settled(weights: str) -> str:
    """The weights by a name that means the same from any folder, and tomorrow: on the hub, with the commit."""
    return find_weights(weights).name if weights else weights


def forecast(recipe: str | Path | None = None, **options: Any) -> Forecast:
    """What a run will take, from building everything and taking a few steps; nothing is written.

    recipe and options as for `train`. Raises what `train` would raise at its start.
    """
    return forecast_config(settle(configure(recipe, **options)))


def forecast_config(config: Config) -> Forecast:
    """What a run of this configuration, a settled one, will take."""
    free = _free_mb(pick_device(config.device))
    state = State(config)
    if config.weights:
        state.start_from_weights(probe=False)
    wanted = WARM_STEPS + min(MOST_STEPS, state.steps_per_epoch)
    order = batch_order(state.shown, config, 0, wanted)
    first = {draw.image for batch in order for draw in batch}
    others = (i for i in range(len(state.shown)) if i not in first)  # a batch of repeats leaves too few
    first.update(itertools.islice(others, max(config.batch - len(first), 0)))
    sample = state.shown.only(sorted(first))

    began = time.perf_counter()
    full = dataclasses.replace(config, data=dataclasses.replace(config.data, first_size=0))
    made = training_batches(sample, full, state.device, first=0, last=wanted)  # fills the cache of the sample
    caching = (time.perf_counter() - began) / len(sample)
    step = _time_steps(state, made, wanted) * config.mean_area

    few = state.val_images.only(list(range(min(len(state.val_images), EVAL_BATCHES * config.batch))))
    cached = config.data.cache != "none"
    began = time.perf_counter()
    batches = eval_loader(few, state.info.preprocess, config.batch, config.data.workers, cached)
    caching_val = (time.perf_counter() - began) / len(few)
    began = time.perf_counter()
    score_together(state.networks, batches, classes=len(few.classes), device=state.device, total=len(few))
    evaluation = (time.perf_counter() - began) / len(few)

    memory = peak_memory_mb(state.device)
    setup = 0.0
    if config.weights and not state.head_kept:  # the features of its probe, of two views
        setup = 2 * evaluation / len(state.networks) * len(state.train_images)
    if cached:
        setup += caching * len(state.shown) + caching_val * len(state.val_images)
        if state.device.type != "cuda" or config.data.cache == "device":
            memory += _cache_mb(sample, config) * (len(state.shown) / len(sample) - 1)
        if state.device.type != "cuda":
            memory += (len(state.val_images) - len(few)) * 3 * config.data.size**2 / 1e6
    return Forecast(
        config=config,
        classes=len(state.info.classes),
        train_images=len(state.train_images),
        val_images=len(state.val_images),
        steps_per_epoch=state.steps_per_epoch,
        setup=setup,
        folds=0 if state.head_kept else folds_to_train(config, state.train_images.labels),
        step=step,
        evaluation=evaluation * len(state.val_images),
        memory=memory,
        free=free,
        disk=_disk_mb(state),
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training takes on several devices. Seconds, MB.

    communication: of a step, what the averaging of gradients takes; lost: of it, what the backward pass does not hide.
    efficiency: images per second of all devices over their number times one's.  memory: of one device.
    """

    devices: int
    steps: int
    step: float
    communication: float
    lost: float
    evaluation: float
    seconds: float
    memory: float
    disk: float

    @property
    def efficiency(self) -> float:
        return (self.step - self.lost) / self.step


def counted_speed(config: Config, *, teraflops: float, utilisation: float) -> float:
    """Images/s that a device trains if it computes at that share of its teraflops: three forward passes an image."""
    return 1e12 * teraflops * utilisation / (3 * 2 * cost_of(config.model, config.data.train_side).macs)


def plan_run(
    config: Config, *, images: tuple[int, int], devices: int, images_per_second: float, gigabytes_per_second: float
) -> Plan:
    """What a training takes, from one device's speed.

    images: to train and to validate on.  images_per_second: of one device in training,
    on crops of full size: smaller ones cost by their area.  gigabytes_per_second: of each device to the others.
    A step is its images' time, and what of a ring all-reduce of fp32 gradients exceeds the backward pass, two
    thirds of it. Evaluation goes at three times the speed, for the last weights and their average.
    Raises ConfigError if the batch cannot be shared.
    """
    if config.batch % devices:
        raise ConfigError(f"a batch of {config.batch} cannot be shared by {devices} devices: use another --batch")
    cost = cost_of(config.model, config.data.size)
    alone = config.batch / devices / images_per_second * config.mean_area
    communication = 8 * cost.parameters * (devices - 1) / devices / (1e9 * gigabytes_per_second)
    lost = max(0.0, communication - BACKWARD * alone)
    steps, networks = epoch_steps(images[0], config.batch), 2 if config.ema else 1
    evaluation = networks * images[1] / (EVALUATION * images_per_second * devices)
    weights, moments = 4 * cost.parameters / 1e6, 2 if config.optim.name == "adamw" else 1.2
    share = config.batch // max(config.optim.accumulate, devices)
    return Plan(
        devices=devices,
        steps=steps * config.epochs,
        step=alone + lost,
        communication=communication,
        lost=lost,
        evaluation=evaluation,
        seconds=config.epochs * steps * (alone + lost) + config.evaluations * evaluation,
        memory=(2 + networks + moments) * weights + share * image_mb(config, torch.device("cpu"), 1000),
        disk=(1 + networks) * weights + config.keep * (networks + moments) * weights + 2,
    )


def _time_steps(state: State, batches: Any, wanted: int) -> float:
    """Mean seconds of a step with the loader's work, after two to warm up."""
    state.train_mode()
    taken, began = 0, time.perf_counter()
    with progress_bar("Taking a few steps", wanted) as advance:
        while taken < wanted:
            pixels, labels, _ = next(batches)
            train_step(state, pixels, labels)
            taken += 1
            advance(1)
            if taken == WARM_STEPS:
                began = time.perf_counter()
            elif taken >= WARM_STEPS + LEAST_STEPS and time.perf_counter() - began > ENOUGH_SECONDS:
                break
        seconds = time.perf_counter() - began
    batches.close()
    return seconds / (taken - WARM_STEPS)


def _cache_mb(sample: Samples, config: Config) -> float:
    """What the sample's training images take in the cache."""
    sizes = []
    for index in range(min(len(sample), 64)):
        with contextlib.suppress(DataError):
            width, height = sample.read(index).size
            shrunk = min(1.0, config.data.cache_size / min(width, height))
            sizes.append(3 * width * height * shrunk**2)
    return sum(sizes) / max(len(sizes), 1) * len(sample) / 1e6


def _disk_mb(state: State) -> float:
    """Weights (last, average, best), checkpoints of networks and optimizers, and 2 MB of images and tables."""

    def size(tensors: Any) -> int:
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))

    network = size(state.model.state_dict().values())
    moments = sum(size(moment.values()) for one in state.optimizers for moment in one.state.values())
    copies = len(state.networks)
    checkpoint = copies * network + moments
    return ((copies + 1) * network + state.config.keep * checkpoint) / 1e6 + 2


def _free_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 1e6
    return float(psutil.virtual_memory().available) / 1e6


def fitting_batch(config: Config) -> int:
    """The largest power of two, up to 256, that fits in 60% of the free memory and leaves 20 steps an epoch.

    Memory is that of what the forward pass keeps for the backward pass, counted on two images.
    """
    device = pick_device(config.device)
    samples, _ = open_configured(config.data)
    image = image_mb(config, device, len(samples.classes))
    parameters = cost_of(config.model, config.data.size).parameters
    room = SHARE_OF_MEMORY * _free_mb(device) - 4 * 5 * parameters / 1e6  # weights, average, gradient, two moments
    batch = LARGEST_BATCH
    while batch > 2 and (batch * image > room or batch * LEAST_STEPS_PER_EPOCH > len(samples)):
        batch //= 2
    if batch * image > room:
        raise TrainingError(
            f"out of memory: {config.model} at {config.data.train_side} px needs {image:.0f} MB an image and "
            f"{_free_mb(device):,.0f} MB are free; use --checkpointing, a smaller --data.size or --model"
        )
    bound = "fits in memory" if 2 * batch * LEAST_STEPS_PER_EPOCH <= len(samples) else "leaves 20 steps an epoch"
    log.info("--batch auto: %d (%s; %.0f MB an image, %s MB free)", batch, bound, image, f"{_free_mb(device):,.0f}")
    return batch


@cache
def image_mb(config: Config, device: torch.device, classes: int) -> float:
    """What a training step keeps of each image for its backward pass, half of it added for passing results."""
    model = create_classifier(config.model, classes=classes, size=config.data.size, drop_path=config.drop_path).to(
        device
    )
    if config.checkpointing and hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(torch.zeros(2, 3, config.data.train_side, config.data.train_side, device=device))
    del logits
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return 1.5 * sum(size for pointer, size in kept.items() if pointer not in own) / 2 / 1e6
