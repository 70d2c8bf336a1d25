"""A model on labelled images: each image once, the last batch too."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from atnet.config import make_config
from atnet.data.loader import NO_LABEL, BadSample, batches_of, eval_loader
from atnet.data.preprocess import Tta, views
from atnet.data.samples import Samples
from atnet.data.sources import open_held_out, open_labelled
from atnet.device import in_precision, multiplies_in_bf16, pick_device
from atnet.errors import ConfigError, DataError, WeightsError
from atnet.eval.metrics import HeadScores, Scores, topk_correct
from atnet.models.heads import answer_together
from atnet.models.load import asked_size, load
from atnet.progress import progress_bar
from atnet.weights.find import find_weights
from atnet.weights.info import CONFIG, INFINITE, WeightsInfo


def score(
    model: nn.Module,
    batches: DataLoader[Any],
    *,
    classes: int,
    device: torch.device,
    total: int,
    tta: Tta = "none",
    size: int = 0,
) -> Scores:
    """Scores of a model on batches of `eval_loader`; the model is left in the mode it was in."""
    return score_together({"": model}, batches, classes=classes, device=device, total=total, tta=tta, size=size)[""]


def score_together(
    models: dict[str, nn.Module],
    batches: DataLoader[Any],
    *,
    classes: int,
    device: torch.device,
    total: int,
    precision: str = "auto",
    tta: Tta = "none",
    size: int = 0,
) -> dict[str, Scores]:
    """Scores of several models by their names, each image opened once for all of them; see `score`.

    precision: of a GPU's products, as in the configuration; a CPU evaluates in fp32, as for all published figures.
    tta, size: which views of the images are answered together, see `atnet.data.preprocess.views`.
    """
    truth: list[Tensor] = []
    answers: dict[str, list[tuple[float, int, Tensor, Tensor]]] = {name: [] for name in models}
    of_heads: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in models}
    bad: list[BadSample] = []
    training = {name: model.training for name, model in models.items()}
    bf16 = device.type == "cuda" and multiplies_in_bf16(precision, device)
    for model in models.values():
        model.eval()
    with torch.inference_mode(), progress_bar("Evaluating", total) as advance:
        for images, labels, holes in batches_of(batches):
            advance(len(labels))
            if holes:
                bad += holes
                images, labels = images[labels != NO_LABEL], labels[labels != NO_LABEL]
                if not len(labels):
                    continue
            images = images.to(device, memory_format=torch.channels_last)
            truth.append(labels)
            for name, model in models.items():
                with in_precision(device, bf16):
                    logits, each = answer_together(model, views(images, size, tta))
                logits = logits.cpu()
                loss = float(cross_entropy(logits, labels, reduction="sum"))
                answers[name].append(
                    (loss, topk_correct(logits, labels, 5), logits.argmax(1), logits.softmax(1).amax(1))
                )
                if each is not None:
                    shares = each.cpu().softmax(2)
                    right = shares.gather(2, labels[:, None, None].expand(-1, shares.shape[1], 1))
                    of_heads[name].append((right.log().sum((0, 2)), shares.argmax(2), shares.amax(2)))
    for name, model in models.items():
        model.train(training[name])
    if not truth:
        raise DataError(f"none of {total:,} images to evaluate on can be read; the first: {bad[0].reason}")
    found = torch.cat(truth).numpy()
    scores = {}
    for name, parts in answers.items():
        losses, top5, called, sure = zip(*parts, strict=True)
        predicted = torch.cat(called).numpy()
        scores[name] = Scores(
            loss=sum(losses) / len(found),
            top1=100.0 * int((found == predicted).sum()) / len(found),
            top5=100.0 * sum(top5) / len(found),
            classes=classes,
            labels=found,
            predicted=predicted,
            confidence=torch.cat(sure).numpy(),
            bad=tuple(bad),
            heads=_together(of_heads[name]) if of_heads[name] else None,
        )
    return scores


def _together(parts: list[tuple[Tensor, Tensor, Tensor]]) -> HeadScores:
    """Of each batch: the heads' sums of log probabilities, their answers, and how sure they were."""
    sums, predicted, confidence = zip(*parts, strict=True)
    called = torch.cat(predicted).numpy()
    return HeadScores(
        loss=-torch.stack(sums).double().sum(0).numpy() / len(called),
        predicted=called,
        confidence=torch.cat(confidence).numpy(),
    )


def scored(samples: Samples, scores: Scores) -> Samples:
    """Those of the images that are in the scores' figures: all that could be read."""
    bad = {name for name, _ in scores.bad}
    return samples.only([i for i, name in enumerate(samples.ids) if name not in bad]) if bad else samples


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores, and of which weights on which images."""

    weights: str
    info: WeightsInfo
    images: str
    scores: Scores


def evaluate(
    weights: str | Path,
    data: str | None = None,
    *,
    size: int | None = None,
    batch: int = 64,
    workers: int = 2,
    device: str = "auto",
    mismatch: Literal["error", "ignore"] = "error",
    model: str = "",
    tta: Tta = "none",
) -> Evaluation:
    """Evaluates weights on a labelled folder.

    weights, model: as for `atnet.load`.
    data: a folder with val/ (or test/), or of class folders, or "digits"; the validation part of the
    run's own data if none is given.
    size: side of the input in pixels, that of the training if None.
    mismatch: ignore leaves images of classes out that the weights do not know.
    tta: test-time augmentation: the mean probability for an image and its mirror image, or for ten crops of it.
    Classes are matched by name with the weights' class list. An image that cannot be read is in `scores.bad`.
    Raises WeightsError, DataError or ConfigError naming the thing and the remedy.
    """
    if batch < 1 or workers < 0:
        raise ConfigError(f"batch={batch}, workers={workers}: use a batch of 1 or more, and 0 workers or more")
    asked = asked_size(size)
    source = find_weights(weights, model)
    chosen = pick_device(device)
    network, info = load(source, str(chosen), size=asked)
    samples = open_validation(source.path, data).relabel(info.classes, ignore=mismatch == "ignore")
    loader = eval_loader(samples, info.preprocess.of(tta), batch, workers)
    network = network.to(memory_format=torch.channels_last)
    scores = score(
        network, loader, classes=len(info.classes), device=chosen, total=len(samples), tta=tta,
        size=info.preprocess.size,
    )  # fmt: skip
    if not math.isfinite(scores.loss):
        raise WeightsError(f"{source.path}: {INFINITE}")
    return Evaluation(
        weights=source.name if source.is_fetched else str(source.path),
        info=info,
        images=samples.store.name,
        scores=scores,
    )


def open_validation(weights: Path, data: str | None) -> Samples:
    """The folder's images; of the run's own source, or without a folder, the part that it was not trained on.

    weights: the file.  Raises ConfigError if no folder is given and the file lies in no run.
    """
    recipe = weights.parent / CONFIG
    trained = make_config(recipe).data if recipe.is_file() else None
    if data is None and trained is None:
        raise ConfigError(f"{weights}: not in a run folder, so its data are not known; give --data FOLDER")
    if trained and (data is None or data == trained.source or str(Path(data).expanduser().resolve()) == trained.source):
        return open_held_out(trained)
    return open_labelled(str(data))
