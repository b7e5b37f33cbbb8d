"""The self-test passes on what was built and fails on whatever is not that."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekit import local, noise, selftest
from edgekit.errors import DataError
from edgekit.manifest import Floor, Manifest, StatePair, Step, TensorSpec
from edgekit.samples import Samples

NORMALIZE = Step("normalize", {"mean": [120.0, 110.0, 100.0], "std": [60.0, 55.0, 50.0], "axis": -1})
TRANSPOSE = Step("transpose", {"axes": [2, 0, 1]})


def test_an_untouched_bundle_passes(maker) -> None:
    result = local.verify(maker.write())
    assert result.passed, result.reason
    assert result.agreement == 1
    assert result.max_error["logits"] < 1e-4
    assert 0 < result.latency_p50_ms <= result.latency_p95_ms


def _double_last_linear(weights: dict) -> None:
    weights["linear"] = weights["linear"] * np.float32(2)


def _one_kernel_zeroed(weights: dict) -> None:
    weights["kernel"] = weights["kernel"].copy()
    weights["kernel"][3] = 0


def _scale(weights: dict) -> None:
    weights["scale"] = np.float32(weights["scale"] * 1.25)


@pytest.mark.parametrize("corrupt", [_double_last_linear, _one_kernel_zeroed, _scale])
def test_a_corrupted_weight_or_scale_fails(corrupt: Callable[[dict], None], maker, tiny_classifier) -> None:
    result = local.verify(maker.write(model=tiny_classifier(corrupt)))
    assert not result.passed
    assert "'logits' is off by" in result.reason


def _changed(**args: object) -> Step:
    return Step("normalize", {**NORMALIZE.args, **args})


@pytest.mark.parametrize(
    "steps",
    [
        (_changed(std=[60.0, 55.0, 58.0]), TRANSPOSE),
        (_changed(mean=[120.0, 110.0, 104.0]), TRANSPOSE),
        (Step("flip_channels", {}), NORMALIZE, TRANSPOSE),
        (NORMALIZE, TRANSPOSE, Step("flip_channels", {"axis": 0})),
        (NORMALIZE, Step("transpose", {"axes": [2, 1, 0]})),
    ],
    ids=["a std", "a mean", "channels flipped before", "channels flipped after", "height and width swapped"],
)
def test_a_wrong_constant_or_channel_order_fails(steps: tuple[Step, ...], maker) -> None:
    assert not local.verify(maker.write(steps={"image": steps})).passed


def _result(maker, manifest_changes: dict, outputs: dict, source: dict | None = None):
    manifest: Manifest = msgspec.structs.replace(
        maker.manifest({"model/model.onnx": b"", **dict.fromkeys(_golden_names(), b"")}), **manifest_changes
    )
    true = {"logits": np.eye(3, dtype=np.float32)[np.arange(32) % 3][:, None]}
    golden, ours = selftest.record(true), selftest.record(source or true)
    return selftest.judge(manifest, outputs or true, [1.0] * 32, source=ours, artifact=golden)


def _golden_names() -> list[str]:
    return [f"selftest/{name}.npz" for name in ("inputs", "source", "artifact")]


def test_equal_outputs_are_judged_as_passed(maker) -> None:
    assert _result(maker, {}, {}).passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_fails(value: float, maker) -> None:
    outputs = {"logits": np.eye(3, dtype=np.float32)[np.arange(32) % 3][:, None]}
    outputs["logits"][5, 0, 1] = value
    result = _result(maker, {}, outputs)
    assert not result.passed
    assert "not finite" in result.reason


def test_another_output_shape_fails(maker) -> None:
    assert not _result(maker, {}, {"logits": np.zeros((32, 1, 4), np.float32)}).passed


def test_an_output_without_a_tolerance_fails(maker) -> None:
    golden = maker.manifest({"model/model.onnx": b"", **dict.fromkeys(_golden_names(), b"")}).selftest
    result = _result(maker, {"selftest": msgspec.structs.replace(golden, tolerance={})}, {})
    assert not result.passed
    assert "no tolerance" in result.reason


def test_answers_that_differ_from_the_source_fail_even_when_the_artifact_is_reproduced(maker) -> None:
    source = {"logits": np.eye(3, dtype=np.float32)[(np.arange(32) + 1) % 3][:, None]}
    result = _result(maker, {}, {}, source)
    assert result.agreement == 0
    assert "answers agree" in result.reason


def test_states_start_at_zero_and_follow_their_sequence(maker, tiny_accumulator, tmp_path: Path) -> None:
    pair = TensorSpec("x", "float32", (1, 2)), TensorSpec("state", "float32", (1, 2))
    maker.golden = Samples(
        {"x": np.ones((5, 1, 2), np.float32)}, sequence=np.array([7, 7, 7, 9, 9], np.int64)
    )
    path = maker.write(
        true_model=tiny_accumulator,
        inputs=pair,
        outputs=(TensorSpec("y", "float32", (1, 2)), TensorSpec("next", "float32", (1, 2))),
        state=(StatePair("state", "next"),),
        preprocess={},
        postprocess=(),
    )
    with local.opened(path) as here:
        pieces = (here.manifest.inputs, here.manifest.state, here.manifest.preprocess)
        outputs, latencies = selftest.run_samples(here.loaded.run, *pieces, maker.golden)
        assert outputs["y"][:, 0, 0].tolist() == [1, 2, 3, 1, 2]
        assert len(latencies) == 5
        single = Samples(maker.golden.inputs)
        assert selftest.run_samples(here.loaded.run, *pieces, single)[0]["y"][:, 0, 0].tolist() == [1] * 5
        given = Samples({**maker.golden.inputs, "state": np.full((5, 1, 2), 10, np.float32)})
        assert selftest.run_samples(here.loaded.run, *pieces, given)[0]["y"][:, 0, 0].tolist() == [11] * 5
    assert local.verify(path).passed


def test_of_a_large_output_a_spread_part_and_all_answers_are_kept() -> None:
    scores = np.random.default_rng(0).random((3, 40, 5000), np.float32)
    kept = selftest.record({"scores": scores, "small": np.ones((3, 4), np.float32)})
    assert kept["small"].shape == (3, 4)
    assert kept["scores"].shape[1] <= selftest.KEPT < kept["scores"].shape[1] * 2
    assert kept[selftest.ANSWERS].tolist() == scores.argmax(axis=-1).tolist()
    scores[1] += 0.5
    changed = selftest.record({"scores": scores})["scores"]
    assert np.all(changed[1] > kept["scores"][1])
    assert np.array_equal(changed[0], kept["scores"][0])


def test_answers_are_argmax_or_the_side_of_one_half() -> None:
    assert selftest.answers(np.array([[[0.1, 0.9]], [[3, 2]]])).tolist() == [[1], [0]]
    assert selftest.answers(np.array([[0.2], [0.7]])).tolist() == [[0], [1]]


def test_a_map_over_an_image_is_answered_for_each_of_its_pixels() -> None:
    scores = np.random.default_rng(0).random((2, 3, 20, 30), np.float32)
    wanted = scores.argmax(axis=1).tolist()
    assert selftest.answers(scores).tolist() == wanted
    assert selftest.answers(scores.transpose(0, 2, 3, 1)).tolist() == wanted
    probability = scores[:, :1]
    assert selftest.answers(probability).tolist() == (probability > 0.5).tolist()


def test_a_classifier_that_keeps_its_image_axes_is_no_map() -> None:
    scores = np.random.default_rng(0).random((4, 10, 1, 1), np.float32)
    wanted = scores.argmax(axis=1).ravel().tolist()
    assert selftest.answers(scores).ravel().tolist() == wanted
    assert selftest.answers(scores.reshape(4, 1, 1, 10)).ravel().tolist() == wanted


def test_of_the_answers_to_a_large_map_a_spread_part_is_kept() -> None:
    kept = selftest.record({"map": np.random.default_rng(0).random((2, 1, 320, 320), np.float32)})
    assert selftest.KEPT / 2 < kept[selftest.ANSWERS].shape[1] <= selftest.KEPT
    assert kept[selftest.ANSWERS].nbytes <= 2 * selftest.KEPT


def test_agreement_refuses_to_compare_different_tasks() -> None:
    with pytest.raises(DataError, match="cannot be compared"):
        selftest.agreement(np.zeros(3), np.zeros(4))


def test_integers_are_answers_themselves_but_quantized_scores_have_a_best_one() -> None:
    labels = np.array([[3, 1], [2, 7]])
    assert selftest.answers(labels).tolist() == labels.tolist()
    assert selftest.answers(np.array([[3, 9], [7, 2]], np.uint8)).tolist() == [1, 0]
    assert selftest.agreement(selftest.answers(labels), selftest.answers(labels + 1)) == 0


def test_so_many_entries_are_kept_spread_over_rows_and_columns() -> None:
    outputs = np.arange(2 * 60 * 85).reshape(2, 60, 85)
    kept = selftest.record({"out": outputs}, 100)["out"]
    assert kept.shape == (2, 100)
    rows, columns = np.divmod(kept[0], 85)
    assert len(set(kept[0].tolist())) == 100
    assert len(set(columns.tolist())) > 50
    assert len(set(rows.tolist())) > 40
    assert np.array_equal(selftest.record({"out": outputs}, 40)["out"], kept[:, :40])


def _with_snr(maker, changed: np.ndarray, least: float):
    golden = maker.manifest({"model/model.onnx": b"", **dict.fromkeys(_golden_names(), b"")}).selftest
    test = msgspec.structs.replace(golden, tolerance={"logits": 100.0}, snr_db={"logits": (Floor(least),)})
    return _result(maker, {"selftest": test}, {"logits": changed})


def test_noise_over_what_the_manifest_allows_fails_where_no_entry_is_beyond_its_tolerance(maker) -> None:
    true = np.eye(3, dtype=np.float32)[np.arange(32) % 3][:, None]
    noise = 0.1 * np.random.default_rng(0).normal(size=true.shape).astype(np.float32)
    result = _with_snr(maker, true + noise, 20)
    assert not result.passed
    assert "'logits' has" in result.reason
    assert "20.0 dB needed" in result.reason
    assert 12 < result.snr_db["logits"][0] < 18
    assert _with_snr(maker, true + noise, 10).passed
    assert _with_snr(maker, true, 150).passed


def test_equal_infinities_agree_and_others_do_not() -> None:
    masked = np.array([[1.0, -np.inf], [2.0, -np.inf]], np.float32)
    assert noise.snr_db(masked, masked) == noise.MOST_DB
    assert noise.snr_db(-masked, masked) == -noise.MOST_DB
    assert noise.snr_db(np.nan_to_num(masked), masked) == -noise.MOST_DB
    assert noise.snr_db(masked, np.nan_to_num(masked, neginf=0)) == -noise.MOST_DB
    nan = np.array([[np.nan, 1]])
    assert noise.snr_db(nan, nan) == -noise.MOST_DB


def test_masked_outputs_that_are_reproduced_pass(maker) -> None:
    true = {"logits": np.where(np.eye(3)[np.arange(32) % 3][:, None] > 0, 1, -np.inf).astype(np.float32)}
    manifest = maker.manifest({"model/model.onnx": b"", **dict.fromkeys(_golden_names(), b"")})
    golden = selftest.record(true)
    result = selftest.judge(manifest, true, [1.0] * 32, source=golden, artifact=golden)
    assert result.passed, result.reason
    assert result.max_error == {"logits": 0}


def test_a_part_of_the_samples_may_have_as_much_noise_as_all(maker) -> None:
    golden = maker.manifest({"model/model.onnx": b"", **dict.fromkeys(_golden_names(), b"")}).selftest
    test = msgspec.structs.replace(golden, snr_db={"logits": (Floor(30.0),)})
    specs = maker.manifest({"model/model.onnx": b"", **dict.fromkeys(_golden_names(), b"")}).outputs
    source = {"logits": np.ones((10, 4), np.float32)}
    part = {"logits": source["logits"][:1]}
    assert noise.of_first_samples(test, specs, source, part)["logits"][0].least_db == pytest.approx(20)
    assert noise.of_first_samples(golden, specs, source, source) is msgspec.UNSET


@pytest.mark.parametrize("kept", [100, 10_000])
def test_rows_have_a_floor_of_their_own_however_few_entries_are_kept(kept: int) -> None:
    chance = np.random.default_rng(0)
    spec = TensorSpec("out", "float32", (1, 84, 50))
    source = chance.random((3, 1, 84, 50))
    source[:, :, :4] *= 600
    changed = source.copy()
    changed[:, :, 4:] *= 1.1
    ours, theirs = (selftest.record({"out": array}, kept)["out"] for array in (changed, source))
    floors = (Floor(50), Floor(50, 1, ((0, 4),)), Floor(50, 1, ((4, 84),)))
    whole, boxes, scores = noise.of_floors(floors, spec, kept, ours, theirs)
    assert whole > 50
    assert boxes == noise.MOST_DB
    assert scores == pytest.approx(20)
    assert "rows 4-83 of axis 1" in noise.complaint("out", floors[2], scores)


def test_a_map_is_answered_by_its_classes_also_where_samples_have_a_batch_axis_of_their_own():
    scores = np.random.default_rng(0).normal(size=(4, 3, 8, 16)).astype(np.float32)
    wanted = scores.argmax(axis=1)
    assert np.array_equal(selftest.answers(scores), wanted)
    assert np.array_equal(selftest.answers(scores[:, None])[:, 0], wanted)
    assert np.array_equal(selftest.answers(np.moveaxis(scores, 1, -1)[:, None])[:, 0], wanted)
