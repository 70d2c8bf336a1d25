"""What a run's curves say, in words: over-fitting, and since when; under-fitting; not finished."""

from collections.abc import Sequence
from typing import Any

RISE = 0.02
GAP = 10.0
GAIN = 0.5
LAG = 3.0


def describe_fit(rows: Sequence[dict[str, str]], config: dict[str, Any]) -> list[str]:
    """Sentences about a run's metrics, each with what to change.

    rows: metrics by epoch; those without an evaluation are passed over.
    config: the run's, whose augmentation is looked at.
    Over-fitting: the validation loss lies 2% above its lowest while the training loss fell on; or training
    top-1 lies 10 points above validation's. Not finished: the last fifth of the epochs still gained 0.5 points.
    Lagging: the moving average ends 3 points below the last weights.
    """
    rows = [row for row in rows if row["val_loss"]]
    if len(rows) < 3:
        return ["Fewer than three epochs were evaluated: too few to tell over-fitting from learning."]
    epochs = [int(row["epoch"]) for row in rows]
    last = rows[-1]
    behind = float(last["val_top1"]) - float(last["ema_val_top1"] or last["val_top1"])
    kept = "ema_val" if last["ema_val_loss"] and behind <= LAG else "val"
    loss, top1 = ([float(row[f"{kept}_{kind}"]) for row in rows] for kind in ("loss", "top1"))
    train_loss, train_top1 = ([float(row[f"train_{kind}"]) for row in rows] for kind in ("loss", "top1"))
    what = "the moving average's validation" if kept == "ema_val" else "the validation"
    remedy = _stronger(config)
    said = []
    low = min(range(len(loss)), key=loss.__getitem__)
    if loss[-1] > (1 + RISE) * loss[low] and train_loss[-1] < train_loss[low]:
        said.append(
            f"Over-fitting since epoch {epochs[low]}: from there {what} loss rose from {loss[low]:.3f} to "
            f"{loss[-1]:.3f} while the training loss fell from {train_loss[low]:.3f} to {train_loss[-1]:.3f}. {remedy}"
        )
    mixed = config["augment"]["mixup"] or config["augment"]["cutmix"]
    gap = train_top1[-1] - top1[-1]
    if mixed:
        said.append("Training top-1 is measured on mixed images, so its distance to validation tells nothing.")
    elif gap > GAP:
        since = next(
            i for i in range(len(rows)) if all(t - v > GAP for t, v in zip(train_top1[i:], top1[i:], strict=True))
        )
        said.append(
            f"Training top-1 ends {gap:.1f} points above validation, and has been over {GAP:.0f} since epoch "
            f"{epochs[since]}: the network knows its training images better than new ones. {remedy}"
        )
    fifth = max(len(rows) // 5, 1)
    gain = top1[-1] - max(top1[:-fifth])
    if gain >= GAIN:
        passed = epochs[-1] - epochs[-1 - fifth]
        span = "epoch" if passed == 1 else f"{passed} epochs"
        said.append(
            f"Still learning: {what} top-1 rose by {gain:.1f} points in the last {span}. "
            f"A longer run will likely be better: train anew with --epochs {2 * epochs[-1]} and another --out."
        )
    if behind > LAG:
        said.append(
            f"The moving average ends {behind:.1f} points below the last weights: the run was too short for it. "
            "Train longer, or name last.safetensors where weights are asked for."
        )
    if not said or (mixed and len(said) == 1):
        said.append(
            "No over-fitting, and nothing gained in the last epochs: a larger --model or more images come next."
        )
    return said


def _stronger(config: dict[str, Any]) -> str:
    """What to change against over-fitting, of what is not on yet."""
    augment, optim = config["augment"], config["optim"]
    steps = []
    if not augment["randaugment"]:
        steps.append("--augment.randaugment 2")
    if not augment["erasing"]:
        steps.append("--augment.erasing 0.25")
    if augment["crop_scale"] > 0.2:
        steps.append("--augment.crop-scale 0.08")
    if not augment["mixup"]:
        steps.append("--augment.mixup 0.2")
    if not config["drop_path"]:
        steps.append("--drop-path 0.05")
    steps.append(f"--optim.weight-decay {2 * optim['weight_decay']:g}")
    return f"Try, in this order: {', '.join(steps[:4])}; a smaller --model, or more images."
