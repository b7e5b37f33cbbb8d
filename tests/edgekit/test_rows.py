"""Sets of rows: padded to their bound, compared whatever their order; what loses or shifts a row is found out."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import agreement, golden_rows, rows, selftest
from edgekit.errors import EngineError, ManifestError
from edgekit.manifest import (
    ROWS_FORMAT,
    EngineSpec,
    FileEntry,
    Manifest,
    SelfTest,
    TensorSpec,
    decode,
    encode,
)
from edgekit.rowset import RowSet, described, opened

BOXES = RowSet({"boxes": 0, "classes": 0}, 8, (4.0, 4.0, 4.0, 4.0, 0.0))
SPECS = (TensorSpec("boxes", "float32", (8, 4)), TensorSpec("classes", "int64", (8,)))


def finding(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "boxes": rng.uniform(0, 300, (count, 4)).astype(np.float32),
        "classes": rng.integers(0, 3, count),
    }


def same(ours, theirs):
    tables = [rows.table(BOXES, rows.padded([BOXES], side)) for side in (ours, theirs)]
    return rows.share(len(rows.matched(*tables)[0]), sum(map(len, tables)))


@given(st.integers(0, 8), st.randoms(use_true_random=False))
def test_padding_comes_off_again_and_order_means_nothing(count, random):
    found = finding(count)
    padded = rows.padded([BOXES], found)
    assert {name: array.shape for name, array in padded.items()} == {"boxes": (8, 4), "classes": (8,)}
    for name, array in rows.bare([BOXES], padded).items():
        np.testing.assert_array_equal(array, found[name])
    order = random.sample(range(count), count)
    assert same(found, {name: array[order] for name, array in found.items()}) == 1


def test_rows_within_reach_are_the_same_and_beyond_it_are_not():
    found = finding(6)
    assert same(found, {**found, "boxes": found["boxes"] + 3.9}) == 1
    assert same(found, {**found, "boxes": found["boxes"] + 4.1}) == 0
    assert same(found, {**found, "classes": found["classes"] + 1}) == 0


def test_a_lost_row_and_one_that_is_given_twice_count():
    found = finding(4)
    assert same(found, {name: array[:3] for name, array in found.items()}) == pytest.approx(6 / 7)
    twice = {name: np.concatenate([array, array[:1]]) for name, array in found.items()}
    assert same(found, twice) == pytest.approx(8 / 9)
    assert same(finding(0), finding(0)) == 1
    assert same(finding(0), finding(2)) == 0


def test_a_row_takes_the_nearest_and_no_other_takes_that():
    left, right = np.array([[0.0], [0.8]]), np.array([[0.9], [0.1]])
    mine, other = rows.matched(left, right)
    assert dict(zip(mine.tolist(), other.tolist(), strict=True)) == {0: 1, 1: 0}


def test_nan_is_near_nan_alone():
    assert len(rows.matched(np.array([[np.nan]]), np.array([[0.0]]))[0]) == 0
    assert len(rows.matched(np.array([[np.nan]]), np.array([[np.nan]]))[0]) == 1


def test_aligned_rows_stand_where_the_others_have_them():
    found = rows.padded([BOXES], finding(5))
    turned = rows.padded([BOXES], {name: array[::-1] for name, array in finding(5).items()})
    for name, array in rows.aligned([BOXES], turned, found).items():
        np.testing.assert_array_equal(array, found[name])


def test_more_rows_than_the_bound_are_cut_and_said():
    cut, is_cut = rows.cut([BOXES], finding(9))
    assert is_cut
    assert len(cut["boxes"]) == len(cut["classes"]) == 8
    assert not rows.cut([BOXES], finding(8))[1]


def test_outputs_of_one_set_that_differ_in_length_are_an_error():
    with pytest.raises(EngineError, match=r"\[2, 3\] rows"):
        rows.cut([BOXES], {**finding(3), "classes": np.zeros(2, np.int64)})


def test_two_models_agree_by_the_rows_that_both_have():
    found = finding(4)
    half = {name: np.concatenate([array[3:1:-1], array[:2] + 50]) for name, array in found.items()}
    assert agreement.of(found, half, sets=[BOXES]) == {"boxes": 0.5, "classes": 0.5}
    assert agreement.of(finding(0), finding(0), sets=[BOXES])["boxes"] == 1


def manifest(**more):
    paths = ("selftest/i", "selftest/s", "selftest/a")
    test = SelfTest(*paths, 16, {"boxes": 0.5, "classes": 0.0}, 0.9, found_again=(0.95,))
    made = Manifest(
        format=ROWS_FORMAT, name="m", version="1", profile="p",
        engine=EngineSpec("onnxruntime", ">=1", "model/m.onnx"), inputs=(TensorSpec("x", "float32", (1,)),),
        outputs=SPECS, recipe="r", source_sha256="0" * 64,
        files=tuple(FileEntry(path, "0" * 64, 1) for path in ("model/m.onnx", *paths)), selftest=test,
        sets=(BOXES,),
    )  # fmt: skip
    return msgspec.structs.replace(made, **more)


def judged(damage):
    """The self-test's verdict where the device gives what `damage` makes of each sample."""
    samples = [finding(index % 7, index) for index in range(16)]
    true, ours = (
        {name: np.stack([rows.padded([BOXES], one)[name] for one in found]) for name in ("boxes", "classes")}
        for found in (samples, [damage(one) for one in samples])
    )
    recorded = selftest.record(true, 4096, [BOXES])
    return selftest.judge(manifest(), ours, [1.0] * 16, source=recorded, artifact=recorded)


def test_a_device_may_give_the_rows_in_another_order():
    result = judged(lambda one: {name: array[::-1] for name, array in one.items()})
    assert result.passed, result.reason
    assert result.agreement == 1
    assert result.max_error == {"boxes": 0, "classes": 0}


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda one: {name: array[:-1] for name, array in one.items()}, "found again"),
        (lambda one: {**one, "boxes": one["boxes"] + 9}, "found again"),
        (lambda one: {**one, "boxes": one["boxes"] + 1}, "'boxes' is off by 1"),
        (lambda one: {**one, "classes": (one["classes"] + 1) % 3}, "found again"),
        (lambda _: finding(0), "found again"),
        (lambda _: finding(7, 99), "answers agree"),
    ],
    ids=["the last lost", "moved far", "moved a little", "other classes", "nothing found", "others found"],
)
def test_a_device_that_loses_moves_or_renames_findings_fails(damage, told):
    result = judged(damage)
    assert not result.passed
    assert told in result.reason


def test_a_manifest_that_does_not_say_how_many_must_be_found_again_fails():
    assert golden_rows.complaints([BOXES], [golden_rows.Again(1.0, {})], ()) != []


def test_a_manifest_keeps_its_sets_and_says_where_shapes_are_open():
    kept = decode(encode(manifest()))
    assert kept.sets == (BOXES,)
    assert [spec.shape for spec in kept.given] == [(None, 4), (None,)]
    assert described(kept) == {"boxes": "float32 ?x4, up to 8 rows", "classes": "int64 ?, up to 8 rows"}
    assert opened((), SPECS) == SPECS


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"sets": (RowSet({"boxes": 1}, 8, (0.0,) * 4),)}, "up to 8 rows along axis 1"),
        ({"sets": (RowSet({"nothing": 0}, 8, ()),)}, "'nothing'"),
        ({"sets": (RowSet({"boxes": 0}, 8, (0.0,)),)}, "rows of 4 entries"),
        ({"format": ROWS_FORMAT - 1}, "came with format"),
    ],
    ids=["another axis", "no such output", "another width", "an older format"],
)
def test_a_set_that_the_outputs_do_not_have_is_refused(changed, told):
    with pytest.raises(ManifestError, match=told):
        decode(encode(manifest(**changed)))
