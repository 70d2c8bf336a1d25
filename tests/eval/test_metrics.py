import numpy as np
import pytest
import torch
from sklearn.metrics import (
    balanced_accuracy_score,
    f1_score,
    precision_score,
    recall_score,
    top_k_accuracy_score,
)
from torch.utils.data import DataLoader, TensorDataset

from atnet.data.loader import collate
from atnet.eval.evaluate import score, score_together
from atnet.eval.metrics import HeadScores, Scores, calibration, together, topk_correct


@pytest.fixture
def answers():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(203, 7, generator=generator)
    labels = torch.randint(7, (203,), generator=generator)
    return logits, labels


def batches_of(logits, labels):
    """Images that a flattening network answers with these logits."""
    data = TensorDataset(logits[:, :, None, None], labels)
    return DataLoader(data, batch_size=50, collate_fn=lambda rows: collate([(*row, None) for row in rows]))


def test_scores_are_scikit_learns(answers):
    logits, labels = answers
    samples = batches_of(logits, labels)
    found = score(torch.nn.Flatten(), samples, classes=7, device=torch.device("cpu"), total=203)
    truth, called = labels.numpy(), logits.argmax(1).numpy()
    assert found.count == 203
    assert found.top1 == pytest.approx(100 * (truth == called).mean())
    assert found.top5 == pytest.approx(100 * top_k_accuracy_score(truth, logits.numpy(), k=5))
    assert found.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert found.balanced_accuracy == pytest.approx(100 * balanced_accuracy_score(truth, called))
    assert found.macro_f1 == pytest.approx(100 * f1_score(truth, called, average="macro"))
    assert found.recall == pytest.approx(100 * recall_score(truth, called, average=None))
    assert found.precision == pytest.approx(100 * precision_score(truth, called, average=None))


def test_models_scored_together_have_the_scores_they_have_alone(answers):
    samples = batches_of(*answers)
    models = {"as it is": torch.nn.Flatten(), "turned": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU())}
    options = {"classes": 7, "device": torch.device("cpu"), "total": 203}
    together = score_together(models, samples, **options)
    for name, model in models.items():
        alone = score(model, samples, **options)
        assert (together[name].loss, together[name].top1, together[name].top5) == (alone.loss, alone.top1, alone.top5)
        assert np.array_equal(together[name].predicted, alone.predicted)
        assert np.array_equal(together[name].confidence, alone.confidence)
    assert together["as it is"].loss != together["turned"].loss


def test_top5_of_three_classes_is_everything():
    assert topk_correct(torch.randn(10, 3), torch.zeros(10, dtype=torch.long), 5) == 10


def test_a_class_without_images_counts_in_no_mean():
    labels, predicted = np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 1, 1, 1])
    scores = Scores(loss=0, top1=0, top5=0, classes=3, labels=labels, predicted=predicted, confidence=np.ones(8, "f4"))
    assert scores.confusion.tolist() == [[3, 1, 0], [0, 4, 0], [0, 0, 0]]
    assert np.isnan(scores.recall[2])
    assert scores.balanced_accuracy == pytest.approx((75 + 100) / 2)
    assert scores.macro_f1 == pytest.approx(100 * (6 / 7 + 8 / 9) / 2)


def test_calibration_counts_by_hand():
    sure = np.array([0.30, 0.26, 0.95, 0.99, 1.00], dtype=np.float32)  # bins (0.25, 0.5] and (0.75, 1] of four
    correct = np.array([False, True, True, True, False])
    found = calibration(correct, sure, bins=4)
    assert found.count.tolist() == [0, 2, 0, 3]
    assert found.accuracy[[1, 3]] == pytest.approx([50, 200 / 3])
    assert found.confidence[[1, 3]] == pytest.approx([28, 98])
    assert np.isnan(found.accuracy[[0, 2]]).all()
    assert found.error == pytest.approx((2 * 22 + 3 * (98 - 200 / 3)) / 5)


def test_a_confidence_on_a_bins_edge_belongs_to_the_lower_bin():
    assert calibration(np.ones(2, dtype=bool), np.array([0.5, 1.0]), bins=2).count.tolist() == [1, 1]


def test_heads_are_scored_by_themselves_and_in_parts():
    labels = np.array([0, 1, 2, 0])
    heads = HeadScores(
        loss=np.array([0.5, 1.0]),
        predicted=np.array([[0, 0], [1, 2], [1, 1], [0, 0]]),
        confidence=np.full((4, 2), 0.5, np.float32),
    )
    assert heads.disagreement == 25.0
    # Errors of the first: 0 0 1 0, of the second: 0 1 1 0.
    assert heads.error_correlation(labels) == pytest.approx(1 / 3**0.5)
    assert np.isnan(heads.error_correlation(heads.predicted[:, 0]))


def test_parts_of_heads_scores_make_the_whole():
    def part(count, loss):
        return Scores(
            loss=0.0, top1=0.0, top5=0.0, classes=3, labels=np.zeros(count, np.int64),
            predicted=np.zeros(count, np.int64), confidence=np.zeros(count, np.float32),
            heads=HeadScores(
                loss=np.array(loss), predicted=np.ones((count, 2), np.int64),
                confidence=np.ones((count, 2), np.float32),
            ),
        )  # fmt: skip

    whole = together([part(1, [1.0, 2.0]), part(3, [5.0, 2.0])])
    assert whole.heads.loss.tolist() == [4.0, 2.0]
    assert whole.heads.predicted.shape == (4, 2)


def test_figures_of_many_classes_need_no_matrix_and_groups_add_up():
    labels, predicted = np.random.default_rng(0).integers(0, 7, (2, 500))
    scores = Scores(
        loss=1.0, top1=1.0, top5=1.0, classes=7, labels=labels, predicted=predicted,
        confidence=np.ones(500, np.float32),
    )  # fmt: skip
    whole = scores.confusion
    assert whole.sum() == 500
    assert whole[2, 5] == ((labels == 2) & (predicted == 5)).sum()
    grouped = scores.confusion_of(3)
    assert grouped.shape == (3, 3)
    assert grouped[0, 2] == whole[:3, 6:].sum()
    assert np.allclose(scores.recall, 100 * whole.diagonal() / whole.sum(1))
    assert np.allclose(scores.precision, 100 * whole.diagonal() / whole.sum(0))
    many = Scores(
        loss=1.0, top1=1.0, top5=1.0, classes=100_000, labels=labels * 14_000, predicted=predicted * 14_000,
        confidence=np.ones(500, np.float32),
    )  # fmt: skip
    assert many.recall[14_000] == pytest.approx(scores.recall[1])
    assert many.macro_f1 == pytest.approx(scores.macro_f1)
    assert many.confusion_of(100).shape == (1000, 1000)
