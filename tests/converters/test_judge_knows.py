"""A judge of models is judged first: each kind of output is damaged in steps, and the verdict has to turn in time."""

import pickle

import msgspec
import numpy as np
import outputs_of_models as made
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outputs_of_models import DAMAGES, LEAST, N, findings, turns

from converters.judge import accuracy, fidelity, kinds, metrics, snr
from edgekit.errors import DataError, ProjectError
from edgekit.samples import stacked

CASES = made.cases()
FITTING = [
    (name, damage)
    for name, case in CASES.items()
    for damage in DAMAGES
    if damage.fits(case, case.outputs[case.damaged])
]


@pytest.mark.parametrize("name", CASES)
def test_what_an_output_holds_is_told_from_the_source_alone(name):
    assert tuple(judge.kind for judge in kinds.infer(CASES[name].outputs)) == CASES[name].kinds


@pytest.mark.parametrize("name", CASES)
def test_the_source_agrees_with_itself_exactly(name):
    for found in findings(CASES[name].outputs, CASES[name].outputs):
        assert found.figure == (snr.CAP_DB if found.unit == "dB" else 1.0)
        assert found.worst is None or found.worst.snr_db == snr.CAP_DB


@pytest.mark.parametrize(("name", "damage"), FITTING, ids=lambda value: getattr(value, "name", value))
def test_the_verdict_turns_before_a_damage_matters(name, damage):
    for step in {damage.by: "in time", damage.steps[-1]: "at its worst"}:
        assert turns(CASES[name].after(damage, step)), f"{damage.name} {step}"


@pytest.mark.parametrize(
    ("name", "damage"),
    [pair for pair in FITTING if pair[1].harmless is not None],
    ids=lambda value: getattr(value, "name", value),
)
def test_harmless_differences_do_not_turn_it(name, damage):
    case = CASES[name]
    found = case.after(damage, damage.harmless)
    assert not turns(found), found


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case.outputs[case.damaged][0].dtype.kind == "f"]
)
def test_half_precision_of_an_output_is_harmless(name):
    case = CASES[name]
    array = case.outputs[case.damaged]
    rounded = stacked([part.astype(np.float16).astype(np.float32) for part in array])
    assert not turns(findings(case.outputs, {**case.outputs, case.damaged: rounded}))


def test_a_bad_value_is_named_by_its_sample_wherever_it_stands():
    found = made.with_dead_channel().repeat(8, -1).repeat(8, -2)
    assert found[0].size > snr.KEPT
    for place in (3, 777, found[0].size - 1):
        broken = found.copy()
        broken[7].flat[place] = np.nan
        (one,) = findings({"y": found}, {"y": broken})
        assert one.bad_sample == 7
        assert not one.holds(0.0, -200)


# What was seen, shipped as met.


def test_a_second_head_at_9_db_is_not_hidden_by_the_first():
    case = CASES["scores, then quantities"]
    heads = findings(case.outputs, made.damaged(case, DAMAGES[0], 10))
    assert heads[0].holds(LEAST)
    assert not heads[1].holds(LEAST)
    assert heads[1].name == "q"


def test_a_joined_detector_that_misses_and_invents_detections_is_told_by_its_f1():
    case = CASES["boxes and scores joined"]
    source = case.outputs["y"]
    candidate = made.without_detections(source, 0.06, np.random.default_rng(0))
    candidate[:, 0, 4:][source[:, 0, 4:] > 0.93] = 0.05
    # Found where there is nothing.
    for index in range(0, N, 6):
        candidate[index, 0, 4, int(source[index, 0, 4:].sum(0).argmin())] = 0.9
    (found,) = findings({"y": source}, {"y": candidate})
    assert 0.85 < found.figure < 0.97
    assert np.mean(candidate[:, 0].argmax(1) == source[:, 0].argmax(1)) == 1
    assert not found.holds(1 - 0.02)


def test_rare_activations_that_fade_are_told_by_their_f1_not_by_agreement():
    source = made.sparse()
    candidate = made.without_active(source, 0.5, np.random.default_rng(0))
    assert np.mean((source > 0.5) == (candidate > 0.5)) > 0.985
    (found,) = findings({"y": source}, {"y": candidate})
    assert found.figure == pytest.approx(2 / 3, abs=0.02)


def test_hidden_values_below_one_half_of_which_nothing_is_left_are_told():
    source = np.minimum(made.hidden(), 0.49)
    (found,) = findings({"y": source}, {"y": np.zeros_like(source)})
    assert found.kind == "values"
    assert found.worst.snr_db <= 0
    assert not turns(findings({"y": source}, {"y": source * np.float32(1.001)}))


def test_whole_number_answers_are_compared_by_equality():
    source = made.whole_numbers(most=4)
    candidate = np.where(np.random.default_rng(0).random(source.shape) < 0.47, (source + 1) % 4, source)
    (found,) = findings({"y": source}, {"y": candidate})
    assert found.figure == np.mean(source == candidate) < 0.6


def test_a_regression_far_from_zero_is_measured_by_what_varies():
    source = made.regression()
    noisy = source + np.random.default_rng(0).normal(0, 0.5, source.shape).astype(np.float32)
    (found,) = findings({"y": source}, {"y": noisy})
    assert found.kind == "values"
    assert abs(found.figure) < 1.5


def test_an_embedding_is_judged_by_its_direction_not_by_its_largest_component():
    source = made.embedding()
    near = source + np.random.default_rng(0).normal(0, 0.01, source.shape).astype(np.float32)
    (found,) = findings({"y": source}, {"y": near})
    assert np.mean(near.argmax(-1) == source.argmax(-1)) < 0.98 < found.figure
    assert found.holds(LEAST)


# What is not told apart by mistake.


def test_numbers_beside_the_one_score_of_their_place_are_no_class_scores():
    """A face detector's 16 coordinates an anchor are peaked, change their winners and lie on one scale, as logits do."""
    r = np.random.default_rng(0)
    coordinates = r.normal(0, 15, (N, 1, 200, 16)).astype(np.float32)
    score = r.normal(-4, 2, (N, 1, 200, 1)).astype(np.float32)
    assert kinds.infer({"regressors": coordinates})[0].kind == "scores"
    beside = kinds.infer({"regressors": coordinates, "classificators": score})
    assert [judge.kind for judge in beside] == ["values", "values"]
    # Few places are words or heads: a classifier's logits stay what they are.
    few = kinds.infer({"y": made.logits(places=(1, 8)), "z": score[:, :, :8]})
    assert few[0].kind == "scores"


def test_landmarks_beside_a_detectors_boxes_and_scores_are_no_class_scores():
    boxes, scores = made.detector()
    landmarks = np.random.default_rng(0).normal(0, 15, (N, 1, 300, 10)).astype(np.float32)
    outputs = {"boxes": boxes[:, None], "scores": scores[:, None], "landmarks": landmarks}
    assert [judge.kind for judge in kinds.infer(outputs)] == ["boxes", "values"]


@pytest.mark.parametrize(
    "array",
    [
        np.random.default_rng(0).integers(0, 256, (N, 1, 3, 8, 8)).repeat(4, -1).astype(np.float32),
        np.random.default_rng(0).uniform(0, 640, (N, 1, 34)).astype(np.float32),
        np.random.default_rng(0).normal(0, 8, (N, 1, 40, 65)).cumsum(-1)[..., :64].astype(np.float32),
        np.random.default_rng(0).normal(0, 1, (N, 1, 384)).astype(np.float32),
        np.random.default_rng(0).uniform(0.1, 0.4, (N, 1, 20)).astype(np.float32),
    ],
    ids=["picture", "key points", "spectrogram", "pooled hidden values", "probabilities below one half"],
)
def test_measurements_are_not_taken_for_scores(array):
    assert kinds.infer({"y": array})[0].kind == "values"


def test_only_boxes_make_a_detector():
    """Nor do thousands of classes of a text, most of them next to zero."""
    wide = np.full((8, 1, 40, 5000), 1e-7, np.float32)
    wide[np.arange(8)[:, None], 0, np.arange(40), np.random.default_rng(2).integers(0, 50, (8, 40))] = 0.9995
    (judge,) = kinds.infer({"y": wide})
    assert (judge.kind, judge.axis, judge.scales) == ("scores", -1, (snr.ONE_SCALE,))
    values = np.random.default_rng(0).uniform(-50, 50, (N, 1, 300, 7)).astype(np.float32)
    values[..., 4:] = np.random.default_rng(1).random((N, 1, 300, 3))
    assert kinds.infer({"y": values})[0].kind == "values"
    assert kinds.infer({"y": made.sparse()})[0].kind == "activations"


def test_a_class_that_is_forbidden_makes_logits_however_flat_they_are():
    flat = made.masked_logits() * np.float32(0.02)
    assert kinds.infer({"y": flat})[0].kind == "scores"
    assert kinds.infer({"y": np.where(np.isfinite(flat), flat, 0)})[0].kind == "values"


@pytest.mark.parametrize("is_last", [True, False])
def test_a_joined_output_is_known_in_both_orders_with_objectness_and_as_shares_of_the_image(is_last):
    boxes, scores = made.detector()

    def as_output(*parts):
        table = np.concatenate(parts, axis=-1)[:, None]
        return {"y": table if is_last else np.moveaxis(table, -1, -2)}

    plain = kinds.infer(as_output(boxes, scores))[0].layout
    assert (plain.form, plain.axis, plain.has_objectness) == ("centre", -1 if is_last else -2, False)
    assert kinds.infer(as_output(boxes / 320, scores))[0].kind == "boxes"
    assert kinds.infer(as_output(made.corners(boxes), scores))[0].layout.form == "corners"
    best = scores.max(-1, keepdims=True)
    classes = np.random.default_rng(0).uniform(0.05, 0.6, scores.shape).astype(np.float32)
    assert kinds.infer(as_output(boxes, best, classes))[0].layout.has_objectness


def test_boxes_scores_and_classes_after_suppression_are_known_by_what_they_hold():
    rows = made.suppressed()
    outputs = {"classes": rows[..., 5].astype(np.int64), "boxes": rows[..., :4], "scores": rows[..., 4]}
    (judge,) = kinds.infer(outputs)
    assert judge.outputs == ("boxes", "scores", "classes")
    assert not turns(findings(outputs, outputs))
    assert turns(findings(outputs, {**outputs, "classes": outputs["classes"] + 1}))


def test_a_background_class_counts_as_nothing():
    boxes, scores = made.detector()
    background = 1 - scores.sum(-1, keepdims=True).clip(0, 0.95)
    shares = np.concatenate([background, scores], -1)
    outputs = {"s": shares / shares.sum(-1, keepdims=True), "b": boxes}
    (judge,) = kinds.infer(outputs)
    assert (judge.outputs, judge.layout.background) == (("b", "s"), 0)


# What the user says holds.


def test_the_user_can_name_the_kind():
    (judge,) = kinds.infer({"y": made.hidden()}, {"y": "embedding"})
    assert judge.kind == "embedding"
    assert judge.is_given
    (judge,) = kinds.infer({"y": made.mask()}, {"y": "activations"})
    assert judge.threshold == 0
    boxes, scores = made.detector()
    raw = np.log(np.maximum(scores, 1e-6) / (1 - scores))
    outputs = {"y": np.concatenate([boxes, raw], -1)}
    assert kinds.infer(outputs)[0].kind == "values"
    (judge,) = kinds.infer(outputs, {"y": "boxes"})
    assert judge.layout.is_logit
    joined = {"y": np.concatenate([boxes, scores], -1)}
    assert not turns(findings(outputs, outputs, (judge,)))
    plain = findings(joined, {"y": np.concatenate([boxes + 3, scores], -1)})
    again = findings(outputs, {"y": np.concatenate([boxes + 3, raw], -1)}, (judge,))
    assert again[0].figure == pytest.approx(plain[0].figure, abs=0.02)


@pytest.mark.parametrize(
    ("given_kinds", "told"),
    [
        ({"z": "values"}, "no such output"),
        ({"y": "pictures"}, "unknown kind"),
        ({"y": "boxes"}, "cannot hold boxes"),
    ],
)
def test_a_kind_that_cannot_be_is_refused_with_what_would_be_right(given_kinds, told):
    with pytest.raises(ProjectError, match=told):
        kinds.infer({"y": made.regression()}, given_kinds)


@pytest.mark.parametrize("kind", ["scores", "map"])
def test_scores_of_one_class_are_refused(kind):
    with pytest.raises(ProjectError, match="more than one class"):
        kinds.infer({"y": made.probability()}, {"y": kind})


# What the rest of a build relies on.


@pytest.mark.parametrize("name", CASES)
def test_judges_and_metrics_travel_between_processes(name):
    for judge in kinds.infer(CASES[name].outputs):
        assert pickle.loads(pickle.dumps(judge)) == judge
        assert msgspec.convert(msgspec.to_builtins(judge), kinds.OutputJudge) == judge
        assert pickle.loads(pickle.dumps(fidelity.as_metric(judge))).judge == judge
    msgspec.json.encode(findings(CASES[name].outputs, CASES[name].outputs))


@pytest.mark.parametrize("name", CASES)
def test_the_metric_of_a_judge_is_its_figure_and_bootstraps(name):
    case = CASES[name]
    judge = next(one for one in kinds.infer(case.outputs) if case.damaged in one.outputs)
    metric = fidelity.as_metric(judge)
    damage = next(one for one in DAMAGES if one.fits(case, case.outputs[case.damaged]))
    candidate = made.damaged(case, damage, damage.by)
    source, other = metric.digest(case.outputs), metric.digest(candidate)
    labels = metrics.first(source)
    found = accuracy.compare(metric, source, other, labels, sequence=None, seed=0)
    direct = findings(case.outputs, candidate, (judge,))[0]
    assert found.candidate == pytest.approx(direct.figure)
    assert found.source == (snr.CAP_DB if judge.kind == "values" else 1.0)
    assert found.bound >= found.drop - 1e-9
    assert type(found.candidate) is type(found.bound) is float


def test_a_digest_is_small_whatever_the_model():
    shape = (2, 1, 21, 256, 256)
    outputs = {"y": made.softmax(np.random.default_rng(0).normal(0, 3, shape).astype(np.float32), axis=2)}
    (judge,) = kinds.infer(outputs)
    sample = fidelity.digest(judge, {"y": outputs["y"][:1]})
    assert judge.kind == "map"
    assert sum(array.nbytes for array in sample.values()) <= 16_384 * 5
    less = fidelity.digest(judge, {"y": outputs["y"][:1]}, with_entries=False)
    assert [array.nbytes for array in less.values()] == [16_384]


def test_kept_entries_know_their_channel():
    """Of (56, 3000) rows, more than are kept, the one of a thousandth of the range is found."""
    source = np.random.default_rng(0).normal(0, 1, (N, 1, 56, 3000)).astype(np.float32)
    source[:, :, 9] *= 1e-3
    (judge,) = kinds.infer({"y": source})
    assert judge.scales[0].axis == -2
    candidate = source.copy()
    candidate[:, :, 9] += np.random.default_rng(1).normal(0, 5e-4, (N, 1, 3000)).astype(np.float32)
    (found,) = findings({"y": source}, {"y": candidate}, (judge,))
    assert found.worst.label == "y[9]"
    assert found.worst.snr_db == pytest.approx(6, abs=0.5)


def test_other_shapes_are_refused():
    (judge,) = kinds.infer({"y": made.hidden()})
    mine, other = (made.digests((judge,), {"y": made.hidden()[..., :width]}) for width in (96, 95))
    with pytest.raises(DataError, match="cannot be compared"):
        fidelity.parts(judge, other, mine)


def test_a_silent_channel_costs_nothing_until_it_speaks():
    source = made.with_dead_channel()
    quiet = source + np.float32(1e-6)
    assert not turns(findings({"y": source}, {"y": quiet}))
    loud = source.copy()
    loud[:, :, 3] = 1
    (found,) = findings({"y": source}, {"y": loud})
    assert found.worst.label == "y[3] (silent)"


def test_one_sample_is_measured_by_its_magnitude():
    source = made.hidden()[:1]
    (judge,) = kinds.infer({"y": made.hidden()})
    found = findings({"y": source}, {"y": source * np.float32(1.1)}, (judge,))[0]
    assert found.figure == pytest.approx(20, abs=0.1)


def test_signal_to_noise_cosine_and_rmse_compare_with_labels_or_with_the_source():
    labels = made.regression()
    noisy = labels + np.random.default_rng(0).normal(0, 0.05, labels.shape).astype(np.float32)
    for name in metrics.AGAINST_SOURCE:
        metric = metrics.built_in(name)
        against = metrics.against_source(metric)
        assert metric.by_labels
        assert not against.by_labels
        figure = against.score({"y": noisy}, metrics.first(against.digest({"y": labels})))
        assert type(figure) is float
        assert figure == metric.score({"y": noisy}, labels)
    assert metrics.built_in("sqnr").score({"y": noisy}, labels) == pytest.approx(20, abs=1.5)
    assert metrics.built_in("sqnr").score({"y": labels}, labels) == snr.CAP_DB
    tiny = np.float32(1e-9)
    assert metrics.built_in("sqnr").score({"y": noisy * tiny}, labels * tiny) == pytest.approx(20, abs=1.5)
    with pytest.raises(ProjectError, match="needs labels"):
        metrics.against_source(metrics.built_in("top1"))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.sampled_from([np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_]),
    st.integers(1, 5),
    st.floats(1e-3, 1e3),
    st.integers(0, 2**32 - 1),
)
def test_any_output_agrees_with_itself_and_never_crashes_the_judge(shape, dtype, count, scale, seed):
    r = np.random.default_rng(seed)
    source = (r.normal(0, scale, (count, *shape)) * r.integers(0, 2, (count, *shape))).clip(
        0 if dtype in (np.uint8, np.bool_) else None, 6e4
    )
    source = source.astype(dtype)
    found = findings({"y": source}, {"y": source})
    assert not turns(found)
    assert all(one.figure == (snr.CAP_DB if one.unit == "dB" else 1.0) for one in found)


@settings(max_examples=40, deadline=None)
@given(st.floats(-20, 60), st.integers(0, 2**32 - 1))
def test_the_measured_signal_to_noise_is_the_true_one(level, seed):
    r = np.random.default_rng(seed)
    source = r.normal(7, 1, (64, 40, 8))
    candidate = source + r.normal(0, 10 ** (-level / 20), source.shape)
    (found,) = findings({"y": source}, {"y": candidate}, kinds.infer({"y": source}, {"y": "values"}))
    assert found.figure == pytest.approx(level, abs=0.5)


@given(st.integers(1, 5000), st.integers(1, 600))
def test_kept_places_are_spread_over_all(count, kept):
    found = snr.chosen(count, kept)
    assert len(found) == min(count, kept)
    assert len(set(found.tolist())) == len(found)
    assert found.max() < count
    if kept >= 8:
        assert np.diff(np.concatenate([[-1], found, [count]])).max() <= 4 * max(1, count / kept)


def test_one_distribution_over_all_places_of_a_sample_holds_no_events():
    scores = np.random.default_rng(0).normal(size=(40, 1, 4, 6, 6)) * 6
    flat = np.exp(scores).reshape(40, -1)
    outputs = (flat / flat.sum(axis=1, keepdims=True)).reshape(scores.shape).astype(np.float32)
    assert outputs.max() > 0.5
    (judge,) = kinds.infer({"heat": outputs})
    assert judge.kind == "values"
