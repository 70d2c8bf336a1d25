from dataclasses import asdict

from atnet.config import make_config
from atnet.eval.fitting import describe_fit

PLAIN = asdict(make_config())


def rows(train_loss, val_loss, train_top1, val_top1):
    names = ("epoch", "train_loss", "val_loss", "train_top1", "val_top1", "ema_val_loss", "ema_val_top1")
    columns = zip(range(1, 1 + len(train_loss)), train_loss, val_loss, train_top1, val_top1, strict=True)
    return [dict(zip(names, [*map(str, column), "", ""], strict=True)) for column in columns]


def test_over_fitting_is_named_with_its_epoch():
    [said] = describe_fit(rows([2, 1, 0.5, 0.3], [2, 1.5, 1.4, 1.9], [20, 50, 60, 63], [20, 55, 60, 60]), PLAIN)
    assert said.startswith("Over-fitting since epoch 3: from there the validation loss rose from 1.400 to 1.900")
    assert "--augment.randaugment 2" in said


def test_remedies_that_are_on_are_not_advised():
    config = asdict(make_config(augment={"randaugment": 2, "erasing": 0.25, "crop_scale": 0.08}))
    [said] = describe_fit(rows([2, 1, 0.5, 0.3], [2, 1.5, 1.4, 1.9], [20, 50, 60, 63], [20, 55, 60, 60]), config)
    assert "randaugment" not in said
    assert "--augment.mixup 0.2" in said


def test_a_gap_is_named_with_its_epoch():
    [said] = describe_fit(rows([2, 1, 0.5, 0.3], [2, 1.5, 1.4, 1.4], [20, 75, 80, 90], [20, 60, 69, 69]), PLAIN)
    assert said.startswith("Training top-1 ends 21.0 points above validation, and has been over 10 since epoch 2")


def test_a_gap_of_exactly_ten_points_is_none():
    said = describe_fit(rows([2, 1, 0.5, 0.3], [2, 1.5, 1.4, 1.4], [20, 60, 70, 80], [20, 60, 70, 70]), PLAIN)
    assert said == [
        "No over-fitting, and nothing gained in the last epochs: a larger --model or more images come next."
    ]


def test_a_run_that_still_learns_is_told_to_go_on():
    [said] = describe_fit(rows([2, 1, 0.9], [2, 1.5, 1.2], [20, 50, 60], [20, 55, 60]), PLAIN)
    assert said.startswith("Still learning: the validation top-1 rose by 5.0 points in the last epoch.")
    assert said.endswith("train anew with --epochs 6 and another --out.")


def test_mixed_images_make_no_gap():
    config = asdict(make_config(augment={"mixup": 0.2}))
    said = describe_fit(rows([2, 1, 0.5, 0.3], [2, 1.5, 1.4, 1.4], [20, 75, 80, 90], [20, 60, 70, 70]), config)
    assert said[0].startswith("Training top-1 is measured on mixed images")
    assert len(said) == 2


def test_epochs_without_an_evaluation_are_passed_over():
    found = rows([2, 1.5, 1, 0.9, 0.8, 0.7], [2, 1.9, 1.5, 1.4, 1.3, 1.2], [20] * 6, [20, 30, 40, 45, 50, 60])
    for row in found[::2]:
        row |= {"val_loss": "", "val_top1": ""}
    [said] = describe_fit(found, PLAIN)
    assert said.startswith("Still learning: the validation top-1 rose by 15.0 points in the last 2 epochs.")
    assert said.endswith("train anew with --epochs 12 and another --out.")


def test_two_epochs_tell_nothing():
    assert describe_fit(rows([2, 1], [2, 3], [20, 90], [20, 20]), PLAIN)[0].startswith("Fewer than three epochs")


def test_an_average_that_lags_is_named():
    lagging = rows([2, 1.5, 1.2], [2, 1.5, 1.3], [20, 40, 60], [20, 40, 58])
    for row, average in zip(lagging, (10, 20, 41.5), strict=True):
        row |= {"ema_val_loss": "1.6", "ema_val_top1": str(average)}
    said = describe_fit(lagging, PLAIN)
    assert said[-1].startswith("The moving average ends 16.5 points below the last weights")
    assert said[0].startswith("Still learning: the validation top-1 rose by 18.0 points")
