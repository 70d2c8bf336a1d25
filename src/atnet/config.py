"""The configuration of a run: frozen dataclasses, from YAML and options in, to YAML out.

The command line, recipes and Python all go through `make_config`: one set of names and checks.
"""

import datetime
import difflib
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from cyclopts import App, CoercionError, CycloptsError, Group, Parameter, Token, UnknownCommandError, UnknownOptionError
from cyclopts.config import Dict

from atnet.errors import ConfigError
from atnet.files import did_you_mean, read_text
from atnet.limits import LARGEST_IMAGE

MAX_YAML_BYTES = 200_000
MAX_CYCLES = 10_000
MAX_SOURCE = 100_000
"""Letters of a data source."""

SECTIONS = ("data", "augment", "optim", "schedule", "distill", "heads")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _check_range(**values: tuple[float, float, float]) -> None:
    for name, (value, low, high) in values.items():
        _check(low <= value <= high, f"{name}={value:g} is out of range: use {low:,.9g} to {high:,.9g}")


def _whole(kind: type, tokens: Sequence[Token]) -> int:
    """A whole number; the parser's own conversion rounds 3.7 to 4. Raises ValueError on anything else."""
    word = tokens[0].value
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not number.is_integer():
        raise ValueError(f"{word[:80]!r} is not a whole number")
    return int(number)


def _batch(kind: type, tokens: Sequence[Token]) -> int:
    """A count, or "auto", which is 0 until a batch is found. Raises ValueError on anything else."""
    word = tokens[0].value
    if word == "auto":
        return 0
    if not word.isdecimal() or not 0 < float(word) < 1e18:
        raise ValueError(f"{word[:80]!r} is neither a count of images nor auto")
    return int(word)


FULL_FROM, GROWTH = 0.75, 16
"""Share of the epochs after which growing training crops have their full size; by how many pixels they grow."""

Whole = Annotated[int, Parameter(converter=_whole)]

AUTO, NONE = "auto", "none"
"""Of weights: those that suit the model; random ones."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images and how evaluation sees them."""

    source: str = ""
    """A folder of class folders, or of train/ and val/ with these; a list, tar shards, Parquet files (docs/data.md); or
    "digits", the embedded set. Short: --data."""
    unlabelled: tuple[str, ...] = ()
    """Further images, whose labels are not known or not looked at, which are learned from through --teacher: folders,
    lists, tar shards, Parquet files. Copies of validation images are left out."""
    val_share: float = 0.2
    """Share of each class held out for validation where the source has no validation part."""
    size: Whole = 224
    """Side of the network's input, in pixels."""
    train_size: Whole = 0
    """Side of the training crops, if not size: crops enlarge what they show, so smaller ones match evaluation."""
    first_size: Whole = 0
    """Side of the training crops in the first epoch, if smaller: they grow by 16 px at a time, to their full size
    in the last quarter of the epochs. Small ones cost less."""
    resize: Literal["crop", "letterbox", "squash"] = "crop"
    """How images become square. crop: their middle is taken; letterbox: they are seen whole, beside bars of the mean
    colour; squash: whole, their shape given up. Kept in the weights."""
    crop_pct: float = 0.875
    """Evaluation: size over the side that the image is resized to, before the centre crop. Not given: 0.875; with
    letterbox and squash 1, which leaves nothing out."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Resampling, in training and evaluation."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the colours, 0 to 1 (ImageNet's)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the colours (ImageNet's)."""
    cache: Literal["none", "ram", "device"] = "none"
    """ram: each image is decoded once and kept, shorter side at most cache_size. device: kept on the GPU, cropped and
    augmented there; the same crops."""
    cache_size: Whole = 256
    """Shorter side of a cached training image, in pixels."""
    workers: Whole = 2
    """Loader processes; 0 loads in the training process. Results do not depend on it."""
    classes: str = ""
    """A text file with a class on each line, in the order of the labels; else classes.txt in the source, or their order
    by name."""
    mismatch: Literal["error", "ignore"] = "error"
    """ignore: images of classes that are not in the list are left out, and a class may be without images."""
    balance: Literal["none", "loss", "sampler"] = "none"
    """Of classes with unlike counts. loss: a rare class's images count more; sampler: they are shown more often."""
    max_bad: float = 0.01
    """Share of the training images that may be unreadable, which are skipped and listed; with more the run stops."""

    def __post_init__(self) -> None:
        _check_range(
            val_share=(self.val_share, 0.01, 0.9),
            size=(self.size, 8, LARGEST_IMAGE),
            crop_pct=(self.crop_pct, max(0.1, self.size / (2 * LARGEST_IMAGE)), 1),
            workers=(self.workers, 0, 256),
            max_bad=(self.max_bad, 0, 1),
        )
        _check(len(self.source) <= MAX_SOURCE, f"data.source has more than {MAX_SOURCE:,} letters: give a list of them")
        _check("\0" not in self.source, f"data.source={self.source!r:.200} has a null character in it")
        _check(
            self.train_size == 0 or 8 <= self.train_size <= LARGEST_IMAGE,
            f"data.train_size={self.train_size} is out of range: use 8 to {LARGEST_IMAGE:,}, or 0 for data.size",
        )
        _check(
            self.first_size == 0 or 8 <= self.first_size <= self.train_side,
            f"data.first_size={self.first_size} is out of range: use 8 to the training crops' {self.train_side}, "
            "or 0 for that",
        )
        _check(
            self.cache == "none" or self.cache_size >= self.train_side,
            f"data.cache_size={self.cache_size} is below the training crops' {self.train_side}: use that or more",
        )
        _check(min(self.std) > 0, f"data.std={self.std} must be above 0")

    @property
    def train_side(self) -> int:
        """Side of the training crops, in pixels, when they have their full size."""
        return self.train_size or self.size

    @property
    def source_name(self) -> str:
        """The source without its folder, for records that others read."""
        return Path(self.source).name


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What training does to each image, and to each batch."""

    crop_scale: float = 0.08
    """Smallest share of an image's area that a random resized crop takes; 1 crops as evaluation does. Not given: 0.08;
    from --weights 0.2."""
    flip: float = 0.5
    """Probability of a mirrored image."""
    randaugment: Whole = 0
    """RandAugment operations for each image; 0 is off."""
    magnitude: Whole = 9
    """RandAugment strength, 0 to 30."""
    erasing: float = 0.0
    """Probability of random erasing."""
    mixup: float = 0.0
    """Alpha of mixup; 0 is off. With cutmix too, each batch gets one of the two."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 is off."""

    def __post_init__(self) -> None:
        _check_range(
            crop_scale=(self.crop_scale, 0.01, 1),
            flip=(self.flip, 0, 1),
            randaugment=(self.randaugment, 0, 10),
            magnitude=(self.magnitude, 0, 30),
            erasing=(self.erasing, 0, 1),
            mixup=(self.mixup, 0, 100),
            cutmix=(self.cutmix, 0, 100),
        )


LEARNING_RATES = {"adamw": 1e-3, "muon": 12e-3}
"""Of each optimizer, where none is asked for."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer."""

    name: Literal["adamw", "muon"] = "muon"
    """muon: Muon for the matrices between input and classifier, AdamW for the others. adamw: AdamW for all."""
    lr: float = 0.0
    """Peak learning rate, for the batch as it is: it is not scaled. 0: 12e-3 of muon, 1e-3 of adamw; from --weights
    3e-3 of muon, 1e-3 if they are not of an AT-Net, and 3e-4 of adamw."""
    weight_decay: float = 0.05
    """Decay of the matrices of layers; norms, biases and tokens are not decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 is off."""
    accumulate: Whole = 1
    """Parts that a batch is computed in, to save memory."""
    layer_decay: float = 1.0
    """Learning rate of each layer over that of the next one's; 1 is off."""
    max_faults: Whole = 5
    """Steps in a row that are not taken, because something in them is not finite, before the run stops."""

    def __post_init__(self) -> None:
        usual = LEARNING_RATES.get(self.name, 0.0)
        _check(0 <= self.lr < math.inf, f"optim.lr={self.lr} must be above 0, or 0 for {usual}, usual at batches of 64")
        if self.lr == 0:
            object.__setattr__(self, "lr", usual)
        _check_range(
            weight_decay=(self.weight_decay, 0, 10),
            beta1=(self.betas[0], 0, 0.99999),
            beta2=(self.betas[1], 0, 0.99999),
            clip=(self.clip, 0, math.inf),
            accumulate=(self.accumulate, 1, 4096),
            layer_decay=(self.layer_decay, 0.01, 1),
            max_faults=(self.max_faults, 1, 1e6),
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Linear warm-up, then cosine annealing with warm restarts."""

    warmup: float = 1.0
    """Epochs of linear warm-up, at most half of the first cycle."""
    cycle: float = 0.0
    """Epochs of the first cycle; 0 makes the whole run one cycle."""
    multiplier: float = 1.0
    """Length of a cycle over the one before it."""
    decay: float = 1.0
    """Peak learning rate of a cycle over the one before it."""
    min_lr: float = 0.01
    """Learning rate at a cycle's end over its first peak."""

    def __post_init__(self) -> None:
        _check_range(
            warmup=(self.warmup, 0, 1e6),
            cycle=(self.cycle, 0, 1e6),
            multiplier=(self.multiplier, 1, 100),
            decay=(self.decay, 0.001, 1),
            min_lr=(self.min_lr, 0, 1),
        )


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """What is learned from a teacher."""

    share: float = 0.5
    """Share of the loss that is the teacher's; the labels have the rest."""
    temperature: float = 2.0
    """Divides both networks' logits: above 1, the unlikely classes count more."""
    size: Whole = 0
    """Side in pixels at which teachers see the training crops, resized; 0: as they are."""
    views: Whole = 0
    """Crops of each image, which come again after so many epochs, so that teachers are asked about each once: their
    answers are kept in the cache folder in 16 bits. 0: new crops and answers in each epoch."""
    features: float = 0.0
    """Weight of a second loss, by which a linear layer on the network's features, left out in the end, tells the
    teachers' features; 0 is off."""

    def __post_init__(self) -> None:
        _check_range(
            share=(self.share, 0, 1), temperature=(self.temperature, 0.1, 100), size=(self.size, 0, 4096),
            views=(self.views, 0, 1000), features=(self.features, 0, 1000),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """The loss of several decision heads; without effect on a network of one."""

    together: float = 0.0
    """Share of the loss on the heads' mean probability; the rest is the mean of each head's own loss."""

    def __post_init__(self) -> None:
        _check_range(together=(self.together, 0, 1))


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run."""

    model: str = "xxxs"
    """An AT-Net size (see `atnet sizes`) or any timm architecture."""
    weights: str = AUTO
    """Weights to go on from: a run, a file, timm:resnet18, hf-hub:user/name or local-dir:FOLDER. They bring their model
    and size; the head is drawn anew if the classes differ. none: random weights. Not given, or auto: the general
    weights of the model's size, where AT-Net has some (`atnet weights`), else random ones."""
    freeze: tuple[str, ...] = ()
    """Parts of the network that are not trained: stem, stages.0, encoder, ...; all is all but the head."""
    teacher: tuple[str, ...] = ()
    """Teacher for knowledge distillation, named as --weights are; of several, their mean
    probability is learned."""
    epochs: Whole = 20
    """Passes over the training images; 0 trains the head of --weights alone, by logistic regression (`atnet probe`).
    Not given: 20; of fewer than 1,280 images up to 100; from --weights 640 over the square root of the number of
    images, 20 at least up to 5,000 images, and of more 8 to 20."""
    batch: Annotated[int, Parameter(converter=_batch)] = 64
    """Images for each step of the optimizer; auto takes the most that fit, up to 256, with 20 steps an epoch.
    Not given: 64; of fewer than 1,280 images 32."""
    seed: Whole = 0
    """Same seed, same run: order, augmentation, initial weights."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    drop_path: float = 0.0
    """Stochastic depth of the last layer."""
    batchnorm: Literal["train", "frozen"] = "train"
    """frozen: BatchNorm keeps the running statistics that it has, those of --weights, which a few images would spoil.
    Not given: frozen if there are --weights."""
    choose: bool = True
    """With --weights of other classes and at most 5,000 images: cross-validate fine-tuning against its linear probe on
    the training images, and where the probe is better, stop at it."""
    ema: float = 0.9998
    """Decay of the moving average of the weights; at step t at most t / (t + 9), a tenth of a short run. 0 is off."""
    checkpointing: bool = False
    """Compute activations twice to save memory."""
    save_minutes: float = 10.0
    """Minutes between two checkpoints within an epoch; its end has one anyway."""
    eval_every: Whole = 1
    """Epochs between two evaluations, at which weights are written; the last epoch has one anyway. Not given: 1, or so
    many that there are 20 where epochs follow from the number of images."""
    early_stop: Whole = 0
    """Epochs without a better validation top-1 after which the run ends early: the learning rate falls to its least
    within a tenth of the steps so far. 0: it has all its epochs."""
    log: tuple[str, ...] = ()
    """What else is told the figures of each epoch: tensorboard (in the run's folder), mlflow, wandb or trackio (where
    their own variables and logins say)."""
    keep: Whole = 2
    """Checkpoints that are kept, the newest ones: if one is damaged, the run goes on from the one before."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto takes cuda, then mps, then cpu."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of matrix products; auto is bf16 on GPUs and processors (AVX512-BF16, AMX) that have it, else fp32."""
    compile: bool = False
    """Compile the training step's network by torch.compile: minutes at the start and at each new image size, faster
    steps on a GPU. On a CPU our own kernels, which it leaves out, are faster."""
    deterministic: bool = False
    """On a GPU, nothing but operations that give the same bits each time, so that a resumed run ends as an unbroken one
    does to the last bit; slower. On a CPU it is so anyway."""
    threads: Whole = 0
    """CPU threads; 0 leaves it to torch."""
    data: Annotated[DataConfig, Parameter(group=Group("Images", sort_key=1))] = field(default_factory=DataConfig)
    augment: Annotated[AugmentConfig, Parameter(group=Group("Augmentation", sort_key=2))] = field(
        default_factory=AugmentConfig
    )
    optim: Annotated[OptimConfig, Parameter(group=Group("Optimizer", sort_key=3))] = field(default_factory=OptimConfig)
    schedule: Annotated[ScheduleConfig, Parameter(group=Group("Learning rate", sort_key=4))] = field(
        default_factory=ScheduleConfig
    )
    distill: Annotated[DistillConfig, Parameter(group=Group("Distillation", sort_key=5))] = field(
        default_factory=DistillConfig
    )
    heads: Annotated[HeadsConfig, Parameter(group=Group("Decision heads", sort_key=6))] = field(
        default_factory=HeadsConfig
    )

    def __post_init__(self) -> None:
        if self.weights == NONE:
            object.__setattr__(self, "weights", "")
        # There was one teacher once, "" for none.
        object.__setattr__(self, "teacher", tuple(filter(None, self.teacher)))
        _check_range(
            epochs=(self.epochs, 0, 1e6),
            batch=(self.batch, 0, 1e6),
            seed=(self.seed, 0, 2**31 - 1),
            label_smoothing=(self.label_smoothing, 0, 0.9),
            drop_path=(self.drop_path, 0, 0.9),
            ema=(self.ema, 0, 0.999999),
            threads=(self.threads, 0, 4096),
            save_minutes=(self.save_minutes, 0, 1e6),
            eval_every=(self.eval_every, 1, 1e6),
            keep=(self.keep, 1, 1000),
        )
        _check(
            self.batch % self.optim.accumulate == 0,
            f"batch={self.batch} does not divide into optim.accumulate={self.optim.accumulate} equal parts",
        )
        _check(
            self.epochs > 0 or bool(self.weights),
            "epochs=0 is a linear probe of --weights: name them, or use 1 epoch or more",
        )
        _check(
            not self.distill.views or not (self.augment.mixup or self.augment.cutmix),
            "distill.views keeps answers to single images: use --augment.mixup 0 and --augment.cutmix 0, or "
            "--distill.views 0",
        )
        _check(
            not self.distill.features or not self.compile,
            "distill.features are read out of the network as it runs, which --compile does not: leave one out",
        )
        _check(
            not self.data.unlabelled or bool(self.teacher),
            "data.unlabelled are images that a teacher tells of: name one, as --teacher timm:tf_efficientnet_lite0",
        )
        _check(
            not self.data.unlabelled or not (self.augment.mixup or self.augment.cutmix),
            "data.unlabelled have no labels to be mixed: use --augment.mixup 0 and --augment.cutmix 0",
        )
        _check(
            not self.data.unlabelled or self.data.balance != "sampler",
            "data.unlabelled are of no class: use --data.balance loss or none",
        )
        _check(
            self.data.cache != "device" or self.augment.crop_scale < 1,
            "data.cache=device makes random crops: use an --augment.crop-scale below 1, or --data.cache ram",
        )
        ends = self.cycle_ends()
        _check(
            not self.epochs or abs(self.epochs - ends[-1]) < 1e-6,
            f"epochs={self.epochs} ends inside a learning-rate cycle (schedule.cycle={self.schedule.cycle:g}): "
            f"cycles end at {', '.join(f'{end:g}' for end in ends[-20:])}; use one of these, or --schedule.cycle 0",
        )

    @property
    def first_cycle(self) -> float:
        """Epochs of the first learning-rate cycle."""
        return self.schedule.cycle or float(self.epochs)

    def train_side(self, epoch: int) -> int:
        """Side of the training crops of an epoch, the first being 0, in pixels.

        Source, but for the steps of 16 px: Tan & Le 2021, "EfficientNetV2".
        """
        first, full = self.data.first_size or self.data.train_side, self.data.train_side
        growing = min(FULL_FROM * self.epochs, self.epochs - 1)
        if epoch >= growing:
            return full
        return min(full, max(first, round((first + (full - first) * epoch / growing) / GROWTH) * GROWTH))

    def area(self, begin: int, end: int) -> float:
        """Pixels of the training crops of the epochs from begin to before end, in crops of full size."""
        if not self.data.first_size:
            return end - begin
        return sum((self.train_side(epoch) / self.data.train_side) ** 2 for epoch in range(begin, end))

    @property
    def mean_area(self) -> float:
        """Pixels of the run's training crops over those of as many of full size."""
        return self.area(0, self.epochs) / max(self.epochs, 1)

    def evaluated(self, epoch: int) -> bool:
        """Whether an epoch, the first being 0, ends with an evaluation."""
        return (epoch + 1) % self.eval_every == 0 or epoch + 1 == self.epochs

    @property
    def evaluations(self) -> int:
        """How many the run has."""
        return math.ceil(self.epochs / self.eval_every)

    def cycle_ends(self) -> list[float]:
        """Epochs at which a cycle ends, up to the first one that is not before the run's end."""
        ends, length = [self.first_cycle], self.first_cycle
        while ends[-1] < self.epochs - 1e-6:
            _check(
                len(ends) < MAX_CYCLES,
                f"schedule.cycle={self.schedule.cycle:g} makes more than {MAX_CYCLES:,} cycles: use a longer one",
            )
            length *= self.schedule.multiplier
            ends.append(ends[-1] + length)
        return ends


Options = Annotated[Config | None, Parameter(name="*", negative_iterable=())]
"""Of a command or function: every option of a run by its own name; None if none is given."""


def _make(*, config: Options = None) -> Config:
    return config or Config()


def make_config(recipe: str | Path | None = None, *, below: dict[str, Any] | None = None, **options: Any) -> Config:
    """A checked configuration from a YAML recipe and options that go before it.

    options are nested as the recipe is: make_config(epochs=3, optim={"lr": 1e-3}).
    below: other defaults than ours, nested so too.
    Raises ConfigError naming an unknown key, with the nearest known one, or a bad value.
    """
    layers = [Dict(by_section(options, "options"), source="options")]
    if recipe is not None:
        layers.append(Dict(read_yaml(recipe), source=str(recipe)))
    if below:
        layers.append(Dict(below, source="defaults"))
    maker = App(config=layers, result_action="return_value", exit_on_error=False, print_error=False)
    maker.default(_make)
    try:
        return maker([])  # type: ignore[no-any-return]
    except CycloptsError as error:
        raise ConfigError(plainly(error)) from error


GONE: dict[str, dict[str, Any]] = {"distill": {"kind": "soft"}, "heads": {"view_drop": 0.0, "penalty": 0.0}}
"""Options of before version 0.2 that did not help, and their values without effect, which runs made then have."""

KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    datetime.timedelta: "a time; write 45s, 20m or 1h30m",
}
OTHER_TOOLS = {
    "batch_size": "batch", "lr0": "optim.lr", "learning_rate": "optim.lr", "opt": "optim.name",
    "optimizer": "optim.name",
    "clip_grad": "optim.clip", "grad_accum_steps": "optim.accumulate",
    "warmup_epochs": "schedule.warmup", "imgsz": "data.size", "img_size": "data.size", "num_workers": "data.workers",
    "hflip": "augment.flip", "fliplr": "augment.flip", "scale": "augment.crop_scale", "aa": "augment.randaugment",
    "reprob": "augment.erasing", "smoothing": "label_smoothing", "model_ema_decay": "ema", "amp": "precision",
    "torchcompile": "compile", "use_deterministic_algorithms": "deterministic",
    "grad_checkpointing": "checkpointing", "output": "out", "output_dir": "out",
}  # fmt: skip
"""What timm, torchvision, Hugging Face and ultralytics call some of our options."""


def plainly(error: CycloptsError) -> str:
    """The parser's error as a person says it, with the option that was probably meant."""
    if isinstance(error, UnknownOptionError):
        names = {name for argument in error.argument_collection for name in argument.names}
        section, _, option = _name(error.token).partition(".")
        if option in GONE.get(section, {}):
            return _gone(_place(error.token))
        near = _nearest(_name(error.token), sorted(name.lstrip("-").replace("-", "_") for name in names))
        typed = error.token.source == "cli"
        return f"{_place(error.token)}: there is no such {'option' if typed else 'setting'}; " + (
            f"did you mean {'--' + near.replace('_', '-') if typed else near}?" if near else "`--help` lists them all"
        )
    if isinstance(error, UnknownCommandError) and error.unused_tokens and error.app:
        word, known = error.unused_tokens[0], [name for name in error.app if not name.startswith("-")]
        near = (difflib.get_close_matches(word, known, 1) or [""])[0]
        return f"{word}: there is no such command; " + (f"did you mean {near}?" if near else f"use {', '.join(known)}")
    if isinstance(error, CoercionError) and error.token:
        if error.msg is not None:
            return f"{_place(error.token)}: {error.msg}"
        if get_origin(error.target_type) is Literal:
            choices = ", ".join(map(str, get_args(error.target_type)))
            return f"{_place(error.token)}: {error.token.value!r} is not one of: {choices}"
        if error.target_type in KINDS:
            return f"{_place(error.token)}: {error.token.value!r} is not {KINDS[error.target_type]}"
    return str(error)


def _gone(place: str) -> str:
    return f"{place} is gone, for it did not help: leave it out, or use version 0.1"


def _name(token: Token) -> str:
    """The option's name as Python has it: optim.lr, of --optim.lr and [optim][lr]."""
    return re.sub(r"\W+", ".", (token.keyword or token.value).replace("-", "_")).strip("._")


def _place(token: Token) -> str:
    """Where the user gave the option: --optim.lr, or mine.yaml: optim.lr."""
    return str(token.keyword or token.value) if token.source in ("", "cli") else f"{token.source}: {_name(token)}"


def _nearest(word: str, names: Sequence[str]) -> str:
    """The name most like the word, in whole or by its last part (lr for optim.lr); "" if none is."""
    close = difflib.get_close_matches(word, names, 1, 0.8)
    if not close and OTHER_TOOLS.get(word) in names:
        close = [OTHER_TOOLS[word]]
    last = difflib.get_close_matches(word.rpartition(".")[2], [name.rpartition(".")[2] for name in names], 1)
    return (close or [name for name in names if last and name.rpartition(".")[2] == last[0]] or [""])[0]


class _PlainLoader(yaml.SafeLoader):
    """YAML without anchors and aliases, whose expansion can eat the machine, and without tags.

    What is not in quotes is null, true or false, or a number as YAML 1.2 has it, else text: 1:30 is no 90, and a day
    is no date.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012, PyYAML's own way
        letter: [(tag, form) for tag, form in forms if tag.rpartition(":")[2] in ("null", "bool")]
        for letter, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        if getattr(self.peek_event(), "tag", None) is not None:  # type: ignore[no-untyped-call]
            raise yaml.YAMLError("tags (!name) are not allowed")
        return super().compose_node(parent, index)


_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9_]{0,30}|0x[0-9a-fA-F]{1,16})$"), list("-+0123456789")
)
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:(?:[0-9][0-9_]{0,99}\.[0-9_]{0,99}|\.[0-9][0-9_]{0,99})(?:[eE][-+]?[0-9]{1,3})?|\.(?:inf|Inf|INF))$"
        r"|\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file's mapping. Raises ConfigError if it is absent, too large, or no mapping."""
    path = Path(path)
    try:
        text = read_text(path, MAX_YAML_BYTES, ConfigError)
    except FileNotFoundError as error:
        near = did_you_mean(path, "recipes", among=lambda found: found.suffix in (".yaml", ".yml"))
        raise ConfigError(f"{path}: no such recipe{near or '; the shipped ones are in recipes/'}") from error
    except ConfigError as error:
        if os.path.isdir(path):
            raise ConfigError(f"{path}: a folder, not a recipe; did you mean --data {path}?") from error
        raise
    try:
        values = yaml.load(text, Loader=_PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError) as error:
        raise ConfigError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of names to values, this is not")
    nameless = [name for name in _names(values) if not isinstance(name, str)]
    if nameless:
        raise ConfigError(f"{path}: {nameless[0]!r} is no name; one of digits is written in quotes: '112'")
    return by_section(values, str(path))


def _names(values: dict[Any, Any]) -> Iterator[Any]:
    for name, value in values.items():
        yield name
        if isinstance(value, dict):
            yield from _names(value)


def merged(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """Nested options: high's go before low's, name by name."""
    both = low | high
    return both | {
        name: merged(low[name], value)
        for name, value in high.items()
        if isinstance(value, dict) and isinstance(low.get(name), dict)
    }


def by_section(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """The values with `data: FOLDER` written out. Raises ConfigError on another section without names.

    Else the parser would take a section's bare value for all of the section, and drop the layers below.
    """
    values = dict(values)
    if isinstance(values.get("data"), str | Path):
        values["data"] = {"source": str(values["data"])}
    for section in SECTIONS:
        if not isinstance(values.get(section, {}), dict):
            raise ConfigError(f"{origin}: {section} is a section of options, a mapping of names to values")
    for section, gone in GONE.items():
        if section in values:
            for name in gone.keys() & values[section].keys():
                if values[section][name] != gone[name]:
                    raise ConfigError(_gone(f"{origin}: {section}.{name}"))
            values[section] = {name: value for name, value in values[section].items() if name not in gone}
    return values


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as nested values, of random weights that they are "none"."""
    return asdict(config) | {"weights": config.weights or NONE}


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `make_config` reads back to an equal one."""
    plain = to_plain(config)
    for section in (plain, plain["data"], plain["optim"]):
        section |= {name: list(value) for name, value in section.items() if isinstance(value, tuple)}
    return yaml.safe_dump(plain, sort_keys=False, default_flow_style=None)
