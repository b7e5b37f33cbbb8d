"""Deltas: what one side makes gives the file on the other, and what is wrong with one is found without harm."""

import bz2
import contextlib
import io
import random
import tracemalloc
import zipfile
from pathlib import Path

import bsdiff4
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import bundle as bundles
from edgekit import delta
from edgekit.delta import HEADER, MAGIC, TRIPLE, DeltaError
from edgekit.extracted import Extracted
from edgekit.manifest import EngineSpec, Manifest, SelfTest, TensorSpec
from fleet import deltas
from fleet.deltas import Memory

SELFTEST = ("selftest/inputs.npz", "selftest/source.npz", "selftest/artifact.npz")


def bundle(folder: Path, model: bytes, version: str = "1.0.0") -> Path:
    """A bundle of a made-up model: only its structure is real."""
    files: dict[str, bytes | Path] = {"model/model.onnx": model, **dict.fromkeys(SELFTEST, b"golden")}
    made = Manifest(
        format=1, name="digits", version=version, profile="x86-64-v3", source_sha256="0" * 64, recipe="onnxruntime/fp32",
        engine=EngineSpec("onnxruntime", ">=1.20", "model/model.onnx"),
        inputs=(TensorSpec("x", "float32", (1, 4)),), outputs=(TensorSpec("y", "float32", (1, 2)),),
        files=tuple(bundles.file_entry(path, data) for path, data in sorted(files.items())),
        selftest=SelfTest(*SELFTEST, 32, {"y": 1e-4}, 0.98),
    )  # fmt: skip
    path = folder / f"{version}.edgekit"
    bundles.write(path, made, files)
    return path


def applied(old: bytes, patch: bytes, length: int) -> bytes:
    return b"".join(delta.apply(Memory(old), io.BytesIO(patch), length))


def tuned(model: bytes, seed: int = 2, share: float = 0.05) -> bytes:
    """Some of the bytes one higher or lower, as after a few more epochs."""
    rng = random.Random(seed)
    return bytes((byte + rng.choice((-1, 1))) % 256 if rng.random() < share else byte for byte in model)


def patch(triples: list[tuple[int, int, int]], differences: bytes, new: bytes, length: int) -> bytes:
    """A delta that nobody made by comparing."""
    packed = b"".join(TRIPLE.pack(*(delta.word(one) for one in three)) for three in triples)
    blocks = [bz2.compress(packed), bz2.compress(differences), bz2.compress(new)]
    return HEADER.pack(MAGIC, len(blocks[0]), len(blocks[1]), length) + b"".join(blocks)


MODEL = random.Random(1).randbytes(40_000)


def test_a_tuned_models_delta_is_a_small_part_of_it_and_always_the_same(tmp_path: Path) -> None:
    old = bundle(tmp_path, MODEL).read_bytes()
    new = bundle(tmp_path, tuned(MODEL), "1.0.1").read_bytes()
    made = deltas.make(old, new)
    assert made is not None
    assert made == deltas.make(old, new)
    assert len(made) < len(new) / 4
    assert applied(old, made, len(new)) == new
    assert bsdiff4.patch(old, made) == new  # by another's reading of the format


def test_a_model_that_became_longer_is_searched(tmp_path: Path) -> None:
    old = bundle(tmp_path, MODEL).read_bytes()
    new = bundle(tmp_path, MODEL[:9000] + b"a layer more" * 20 + MODEL[9000:], "1.0.1").read_bytes()
    made = deltas.make(old, new)
    assert made is not None
    assert len(made) < len(new) / 10
    assert bsdiff4.patch(old, made) == applied(old, made, len(new)) == new


def test_a_model_whose_parts_moved_is_searched_though_its_length_stayed(tmp_path: Path) -> None:
    old = bundle(tmp_path, MODEL).read_bytes()
    new = bundle(tmp_path, MODEL[100:] + MODEL[:100], "1.0.1").read_bytes()
    made = deltas.make(old, new)
    assert made is not None
    assert len(made) < len(new) / 10


def test_what_is_longer_than_a_window_is_searched_window_by_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deltas, "WINDOW_BYTES", 10_000)
    old = bundle(tmp_path, MODEL).read_bytes()
    new = bundle(tmp_path, MODEL[:9000] + b"more" + MODEL[9000:], "1.0.1").read_bytes()
    made = deltas.make(old, new)
    assert made is not None
    assert applied(old, made, len(new)) == new


def test_where_little_is_saved_no_delta_is_made(tmp_path: Path) -> None:
    old = bundle(tmp_path, MODEL).read_bytes()
    new = bundle(tmp_path, random.Random(3).randbytes(40_000), "1.0.1").read_bytes()
    assert deltas.make(old, new) is None


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=2000), st.binary(max_size=2000), st.integers(0, 2000))
def test_whatever_the_files_the_delta_gives_the_new_one(
    tmp_path_factory: pytest.TempPathFactory, one: bytes, other: bytes, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    shared = MODEL[:4000]
    old = bundle(folder, shared + one).read_bytes()
    new = bundle(folder, shared[:cut] + other + shared[cut:], "1.0.1").read_bytes()
    made = deltas.make(old, new)
    assert made is None or applied(old, made, len(new)) == new


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_deltas_of_any_bsdiff_are_understood(old: bytes, new: bytes) -> None:
    assert applied(old, bsdiff4.diff(old, new), len(new)) == new


OLD = b"0123456789" * 100


@pytest.mark.parametrize(
    ("data", "told"),
    [
        pytest.param(b"", "no delta", id="empty"),
        pytest.param(b"BSDIFF41" + bytes(24), "no delta", id="another-format"),
        pytest.param(patch([(4, 0, 0)], b"\1" * 4, b"", 5), "5 bytes", id="of-another-length"),
        pytest.param(HEADER.pack(MAGIC, 1 << 60, 0, 4), "longer than the delta", id="blocks-beyond-its-end"),
        pytest.param(HEADER.pack(MAGIC, 0, delta.word(-9), 4), "longer than the delta", id="a-negative-block"),
        pytest.param(patch([(0, 0, 996), (5, 0, 0)], b"\1" * 5, b"", 4), "longer than the file", id="too-long"),
        pytest.param(patch([(0, 0, 998), (4, 0, 0)], b"\1" * 4, b"", 4), "leaves the old", id="behind-its-end"),
        pytest.param(patch([(0, 0, -1), (4, 0, 0)], b"\1" * 4, b"", 4), "leaves the old", id="before-it"),
        pytest.param(patch([(0, 0, 1 << 62), (4, 0, 0)], b"\1" * 4, b"", 4), "leaves the old", id="far-away"),
        pytest.param(patch([(-4, 8, 0)], b"", b"\1" * 8, 4), "longer than the file", id="a-negative-step"),
        pytest.param(patch([(0, 0, 0)] * 100_000, b"", b"", 4), "without end", id="steps-without-end"),
        pytest.param(patch([(2, 0, 0)], b"\1" * 2, b"", 4), "too early", id="steps-too-few"),
        pytest.param(patch([(4, 0, 0)], b"\1" * 3, b"", 4), "too early", id="differences-too-few"),
        pytest.param(patch([(4, 0, 0)], b"\1" * 4, b"", 4)[:40], "longer|early|damaged", id="cut"),
        pytest.param(HEADER.pack(MAGIC, 20, 0, 4) + b"x" * 20, "damaged", id="no-bzip2"),
    ],
)  # fmt: skip
def test_a_hostile_delta_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(DeltaError, match=told):
        applied(OLD, data, 4)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_damaged_delta_ends_in_a_refusal_or_in_a_file_of_the_signed_length(choose: st.DataObject) -> None:
    good = bytearray(bsdiff4.diff(OLD, tuned(OLD)))
    for _ in range(choose.draw(st.integers(1, 4))):
        good[choose.draw(st.integers(0, len(good) - 1))] = choose.draw(st.integers(0, 255))
    with contextlib.suppress(DeltaError):
        assert len(applied(OLD, bytes(good), len(OLD))) == len(OLD)


def test_a_bomb_takes_no_more_memory_than_a_piece() -> None:
    """A hundred megabytes packed into a hundred bytes, of which four bytes are asked for."""
    bomb = patch([(4, 0, 0)], bytes(100 << 20), b"", 4)
    assert len(bomb) < 1000
    tracemalloc.start()
    try:
        assert applied(OLD, bomb, 4) == OLD[:4]
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=5000), st.integers(0, 6000), st.integers(0, 6000))
def test_an_extracted_bundle_reads_as_the_file_that_it_was(
    tmp_path_factory: pytest.TempPathFactory, model: bytes, at: int, length: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    path = bundle(folder, model)
    bundles.read(path).extract(folder / "slot")
    with Extracted(folder / "slot") as found:
        assert found.sha256() == bundles.sha256_file(path)
        assert found.size == path.stat().st_size
        assert found.read(at, length) == path.read_bytes()[at : at + length]


def test_what_is_no_bundle_is_no_base() -> None:
    with pytest.raises(zipfile.BadZipFile):
        deltas.make(b"no bundle", b"nor this")
