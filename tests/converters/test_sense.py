"""Whether the source makes sense of the labels: what is refused, what it says, and what passes."""

import numpy as np
import pytest

from converters.judge import metrics, sense, text
from edgekit.errors import DataError

RANDOM = np.random.default_rng(0)
COUNT, CLASSES = 200, 10
LABELS = RANDOM.integers(0, CLASSES, COUNT)


def scores(labels, errors=0.1):
    """Scores of a model that is right but for a share of the samples."""
    answers = np.asarray(labels).copy()
    wrong = RANDOM.random(len(answers)) < errors
    answers[wrong] = RANDOM.integers(0, CLASSES, int(wrong.sum()))
    return {"y": np.eye(CLASSES, dtype=np.float32)[answers] + RANDOM.random((len(answers), CLASSES)) * 0.1}


def objection(name, outputs, labels, sequence=None, **options):
    metric = name if isinstance(name, metrics.Metric) else metrics.built_in(name)
    return sense.objection(metric, metric.digest(outputs), labels, sequence, **options)


@pytest.mark.parametrize("name", ["top1", "top3", "f1"])
def test_a_source_that_is_mostly_right_makes_sense(name):
    assert objection(name, scores(LABELS), LABELS) == ""


@pytest.mark.parametrize("name", ["top1", "top3", "f1"])
def test_labels_that_count_from_1_are_refused_with_a_hint(name):
    found = objection(name, scores(LABELS), LABELS + 1)
    assert f"{name} of the float source is 0." in found
    assert "always answering class" in found
    assert "with labels - 1 the source scores" in found


def test_a_source_that_guesses_is_refused_and_told_beside_the_best_constant():
    labels = np.where(RANDOM.random(COUNT) < 0.4, 3, LABELS)
    found = objection("top1", scores(RANDOM.integers(0, CLASSES, COUNT)), labels)
    assert "always answering class 3 scores 0." in found
    assert "[preprocess]" in found


def test_labels_beyond_the_classes_are_named():
    found = objection("top1", scores(LABELS), LABELS + 40, classes=CLASSES)
    assert "labels go from 40 to 49, and the model has 10 classes (0 to 9)" in found


def test_labels_as_text_are_refused():
    with pytest.raises(DataError, match=r"labels are text \(<U3\); metric 'top1' needs class numbers"):
        objection("top1", scores(LABELS), np.array(["cat"] * COUNT))


def test_one_hot_labels_are_refused_with_what_to_give():
    hot = np.eye(CLASSES)[LABELS]
    for name in ("top1", "top3", "f1"):
        assert "labels.argmax(axis=-1)" in objection(name, scores(LABELS), hot)


def test_labels_of_one_class_show_nothing():
    ones = np.full(COUNT, 4)
    assert "all labels are the same" in objection("top1", scores(ones, errors=0), ones)


def test_an_error_no_smaller_than_the_means_is_refused():
    wanted = RANDOM.normal(25, 3, (COUNT, 2)).astype(np.float32)
    good = {"y": wanted + RANDOM.normal(0, 1, wanted.shape)}
    assert objection("rmse", good, wanted) == ""
    assert objection("cosine", {"y": good["y"] - 25}, wanted - 25) == ""
    found = objection("rmse", {"y": wanted / 25}, wanted)
    assert "always answering the labels' mean scores" in found
    assert objection("cosine", {"y": RANDOM.normal(size=wanted.shape)}, wanted - 25)


def test_a_reader_that_reads_nothing_is_refused():
    wanted = np.tile([1, 2, 3, -1], (COUNT, 1))
    wanted[:, 0] = RANDOM.integers(1, 9, COUNT)
    assert objection("cer", {"y": wanted}, wanted) == ""
    found = objection("cer", {"y": np.full_like(wanted, -1)}, wanted)
    assert "an empty answer scores 1.0000" in found
    assert "alphabet" in found


def test_a_detector_that_finds_nothing_is_refused():
    wanted = np.zeros((COUNT, 1, 5))
    corner = RANDOM.uniform(0, 90, (COUNT, 2))
    wanted[:, 0, :2], wanted[:, 0, 2:4] = corner, corner + 10
    rows = np.concatenate([wanted[..., :4], np.full((COUNT, 1, 1), 0.9), wanted[..., 4:]], axis=-1)
    assert objection("map", {"y": rows}, wanted) == ""
    assert "no box at all scores 0.0000" in objection("map", {"y": rows + 500}, wanted)


def test_a_users_metric_is_tried_with_the_labels_of_other_samples():
    own = metrics.users(
        "own.py:share", lambda outputs, wanted: (outputs["y"].argmax(axis=1) == wanted).mean()
    )
    assert objection(own, scores(LABELS), LABELS) == ""
    found = objection(own, scores(RANDOM.permutation(LABELS)), LABELS)
    assert "with the labels of other samples" in found
    # One that never looks at the labels cannot tell.
    blind = metrics.users("own.py:blind", lambda outputs, wanted: outputs["y"].mean())
    assert objection(blind, scores(LABELS), LABELS) == ""


def test_a_users_metric_that_gives_no_number_is_refused_by_name():
    own = metrics.users("own.py:odd", lambda outputs, wanted: float("nan"))
    assert "own.py:odd of the float source is nan" in objection(own, scores(LABELS), LABELS)


def test_sequences_are_shuffled_whole():
    sequence = np.repeat(np.arange(COUNT // 20), 20)
    places = np.tile(np.arange(20) % CLASSES, COUNT // 20)
    # The same at each place of every sequence: labels of another sequence are as right, so that nothing can be told.
    assert objection("top1", scores(places, errors=0), places, sequence) == ""
    assert objection("top1", scores(LABELS), LABELS, sequence) == ""


def test_without_labels_there_is_nothing_to_make_sense_of():
    assert objection("agreement", scores(LABELS), scores(LABELS)["y"].argmax(axis=1)) == ""


def test_the_best_guess_is_what_a_default_limit_scales_with():
    wanted = RANDOM.normal(0, 2, (COUNT, 1))
    metric = metrics.built_in("rmse")
    guess = sense.best_guess(metric, metric.digest({"y": wanted}), wanted)
    assert guess.figure == pytest.approx(np.std(wanted))
    assert sense.best_guess(metrics.users("own.py:f", lambda *_: 0.0), {}, wanted) is None
    assert text.END < 0


@pytest.mark.parametrize("name", ["top1", "top3", "f1"])
def test_labels_that_are_no_numbers_are_refused_with_where(name):
    labels = LABELS.astype(float)
    labels[7] = np.nan
    with pytest.raises(DataError, match=r"labels of 1 samples are NaN or infinite \(the first is 7"):
        objection(name, scores(LABELS), labels)
