"""The guard that a build fits and judges: false alarms as stated, unfamiliar inputs found, and no damage goes unseen."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from converters.keep.artifacts import Cache
from converters.source import project as projects
from converters.source.code import CodeGate
from converters.work.guarding import Guarding, shrunk
from converters.work.workbench import Workbench
from edgekit import bundle as bundles
from edgekit import evidence, local
from edgekit import guard as guards
from edgekit import manifest as manifests
from edgekit.errors import BundleError, DataError, ManifestError, ProjectError
from edgekit.samples import dump_arrays, load_arrays

LETTERS = "ABCDEFGHJKLMNPQRTUVWXYabdefghkmnprtuvwxy"


def project(digits, **guard):
    table = {
        "model": {"name": "digits", "version": "1.0.0", "source": str(digits.folder / "model.onnx")},
        "inputs": {"x": {"shape": [1, 1, 8, 8]}},
        "data": {
            "calibration": str(digits.folder / "calib.npz"),
            "evaluation": str(digits.folder / "eval.npz"),
        },
        "targets": {"x86-64-v3": {}},
        "guard": guard,
    }
    return projects.from_flags(table)


def guarding(tmp_path, given) -> Guarding:
    tell = lambda _text: None  # noqa: E731
    gate = CodeGate(allowed=True, tell=tell)
    return Workbench(given, gate, Cache(None, tell=tell), tmp_path, tell).guarding


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Path:
    """Letters in a font, as small as the digits."""
    pictures = []
    for letter in LETTERS:
        for size in (24, 32):
            canvas = Image.new("L", (60, 60))
            font = ImageFont.load_default(size=size)
            ImageDraw.Draw(canvas).text((6, 0), letter, fill=255, font=font)
            small = canvas.crop(canvas.getbbox()).resize((8, 8), Image.Resampling.BOX)
            pictures.append(np.asarray(small, np.float32) / 255)
    path = tmp_path_factory.mktemp("letters") / "letters.npz"
    np.savez(path, x=np.stack(pictures)[:, None])
    return path


@pytest.fixture(scope="module")
def built(digits, run_build, tmp_path_factory):
    """A whole build with a guard."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "edgekit.toml").write_text(
        f"""
        [model]
        name = "digits"
        version = "1.0.0"
        source = "{digits.folder / "model.onnx"}"
        [inputs.x]
        shape = [1, 1, 8, 8]
        [data]
        calibration = "{digits.folder / "calib.npz"}"
        evaluation = "{digits.folder / "eval.npz"}"
        [contract]
        max_accuracy_drop = 0.06
        [guard]
        answer = "refuse"
        [targets.x86-64-v3]
        """
    )
    result = run_build(
        "--project", folder, "--recipe", "onnxruntime/fp32", "--out", folder / "dist", "--json",
        folder / "result.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder, result.stderr


def test_false_alarms_are_as_few_as_stated_and_built_in_strangers_are_found(digits, tmp_path):
    found = guarding(tmp_path, project(digits)).evidence
    assert found.familiar.of >= 200
    assert found.familiar.low <= found.stated == 0.01
    shares = {each.name: each.found / each.of for each in found.unfamiliar}
    assert set(shares) == {"noise", "inverted", "shuffled", "blank"}
    assert min(shares.values()) >= 0.9, shares


def test_letters_are_no_digits(digits, letters, tmp_path):
    found = guarding(tmp_path, project(digits, unfamiliar=str(letters))).evidence
    (own,) = found.unfamiliar
    assert own.found / own.of >= 0.9, own
    assert own.low < own.found / own.of <= own.high


def test_more_false_alarms_are_allowed_where_that_is_asked_for(digits, tmp_path):
    strict, loose = (guarding(tmp_path, project(digits, false_alarms=rate)).fitted for rate in (0.01, 0.2))
    assert loose.threshold < strict.threshold
    assert loose.evidence.familiar.found > strict.evidence.familiar.found


def test_a_guard_that_was_fitted_on_something_else_shows_in_its_false_alarms(digits, tmp_path):
    """What judges is judged: with the threshold a third too low the build's own figure tells."""
    own = guarding(tmp_path, project(digits))
    low = own._judged(own.project.file.guard, own.fitted.familiar, own.fitted.threshold / 1.5, 1, 1)
    assert low.familiar.low > low.stated


def test_a_rate_that_so_few_samples_cannot_show_is_refused_with_how_many_would(digits, tmp_path):
    with pytest.raises(DataError, match=r"needs 999 samples .* has 24"):
        guarding(tmp_path, project(digits, false_alarms=0.001)).fitted  # noqa: B018


def test_inputs_whose_values_say_nothing_get_no_guard(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Cast", ["ids"], ["y"], to=TensorProto.FLOAT)],
        "ids",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "m.onnx",
    )
    np.savez(tmp_path / "d.npz", ids=np.random.default_rng(0).integers(0, 99, (400, 4)))
    given = projects.from_flags(
        {
            "model": {"name": "ids", "version": "1", "source": str(tmp_path / "m.onnx")},
            "inputs": {"ids": {"shape": [1, 4], "dtype": "int64"}},
            "data": {"evaluation": str(tmp_path / "d.npz")},
            "targets": {"x86-64-v3": {}},
            "guard": {},
        }
    )
    with pytest.raises(ProjectError, match="leave \\[guard\\] out"):
        guarding(tmp_path, given).fitted  # noqa: B018


def test_a_covariance_of_few_rows_is_still_one():
    rows = np.random.default_rng(0).normal(size=(10, 30))
    made = shrunk(rows - rows.mean(axis=0))
    assert np.linalg.eigvalsh(made).min() > 0
    assert np.allclose(made, made.T)


def test_the_guard_travels_in_the_bundle_and_what_was_found_beside_it(built):
    folder, told = built
    (path,) = (folder / "dist").glob("*.edgekit")
    found = bundles.read(path)
    assert found.manifest.format == manifests.GUARD_FORMAT
    assert found.manifest.guard.answer == "refuse"
    assert found.manifest.guard.golden_caught <= 2 < found.manifest.guard.turned_caught
    assert local.verify(path).passed
    written = evidence.decode(evidence.beside(path).read_bytes()).predicate.guard
    assert written.familiar.of >= 200
    assert "guard: catches" in " ".join(told.split())
    row = json.loads((folder / "result.json").read_text())["bundles"][0]
    assert row["guard"]["familiar"]["found"] == written.familiar.found


def test_without_a_guard_there_is_nothing_of_one(digits, tmp_path):
    plain = project(digits)
    plain = msgspec.structs.replace(plain, file=msgspec.structs.replace(plain.file, guard=None))
    own = guarding(tmp_path, plain)
    assert (own.fitted, own.evidence, own.note) == (None, None, "")
    assert own.shipped(own.data.judged) is None


def damaged(built, tmp_path, *, section=None, arrays=None) -> Path:
    """The built bundle with other words about its guard, or other statistics, and all digests right again."""
    folder, _told = built
    (path,) = (folder / "dist").glob("*.edgekit")
    bundle = bundles.read(path)
    files = {entry.path: bundle.read(entry.path) for entry in bundle.manifest.files}
    own = bundle.manifest.guard
    if arrays is not None:
        (tmp_path / "s.npz").write_bytes(files[own.statistics])
        files[own.statistics] = dump_arrays(arrays(load_arrays(tmp_path / "s.npz")))
    manifest = msgspec.structs.replace(
        bundle.manifest,
        guard=msgspec.structs.replace(own, **(section or {})),
        files=tuple(bundles.file_entry(name, data) for name, data in sorted(files.items())),
    )
    target = tmp_path / bundle.manifest.filename
    bundles.write(target, manifest, files)
    return target


def threshold(built) -> float:
    return bundles.read(next((built[0] / "dist").glob("*.edgekit"))).manifest.guard.threshold


@pytest.mark.parametrize("factor", [0.1, 10, 1000])
def test_a_corrupted_threshold_fails_the_self_test(built, tmp_path, factor):
    result = local.verify(damaged(built, tmp_path, section={"threshold": threshold(built) * factor}))
    assert not result.passed
    assert "the guard catches" in result.reason


@pytest.mark.parametrize(
    "change",
    [
        lambda own: own | {"mean": own["mean"][::-1].copy()},
        lambda own: own | {"whitening": own["whitening"][::-1].copy()},
        lambda own: own | {"mean": own["mean"] * np.float32(1.2)},
        lambda own: own | {"golden": own["turned"], "turned": own["golden"]},
    ],
    ids=["means swapped", "whitening swapped", "a scale", "familiar and unfamiliar swapped"],
)
def test_swapped_statistics_fail_the_self_test(built, tmp_path, change):
    result = local.verify(damaged(built, tmp_path, arrays=change))
    assert not result.passed
    assert "the guard finds golden input" in result.reason


@pytest.mark.parametrize(
    "change",
    [
        lambda own: own | {"mean": own["mean"][:-1]},
        lambda own: own | {"mean": np.full_like(own["mean"], np.nan)},
        lambda own: own | {"mean": own["mean"].astype(np.float64)},
        lambda own: {name: array for name, array in own.items() if name != "golden"},
    ],
    ids=["too short", "not finite", "another type", "one missing"],
)
def test_statistics_that_are_none_are_refused_when_they_are_loaded(built, tmp_path, change):
    with pytest.raises(BundleError, match=r"guard/statistics\.npz"):
        local.verify(damaged(built, tmp_path, arrays=change))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"statistics": "guard/other.npz"}, "not among its files"),
        ({"inputs": ("y",)}, "no inputs"),
        ({"inputs": ()}, "guards nothing"),
        ({"threshold": -1.0}, "threshold"),
    ],
)
def test_a_section_that_says_something_impossible_is_refused(built, tmp_path, section, said):
    path = damaged(built, tmp_path, section=section)
    with pytest.raises(ManifestError, match=said):
        bundles.read(path)


def test_a_guard_that_is_too_large_is_refused(built, tmp_path):
    path = damaged(built, tmp_path, arrays=lambda own: own | {"more": np.zeros(70_000, np.float32)})
    with pytest.raises(ManifestError, match="a guard has at most"):
        bundles.read(path)


def test_features_of_one_kind_of_input_are_as_many_whatever_its_size():
    spec = manifests.TensorSpec("x", "float32", (1, 3, 48, None))
    chance = np.random.default_rng(0)
    sizes = {len(guards.features(chance.normal(size=(1, 3, 48, wide)), spec, 8)) for wide in (5, 8, 160, 321)}
    assert len(sizes) == 1


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (1, 1, 8, 8), (1, 32, 32, 3), (1, 3, 32, 32), (1, 16000), (5,), (1, 4), ()]
)
def test_every_shape_has_features(shape):
    spec = manifests.TensorSpec("x", "float32", shape)
    found = guards.features(np.random.default_rng(0).normal(size=shape).astype(np.float32), spec, 8)
    assert np.isfinite(found).all()
    assert len(found) <= guards.MAX_FEATURES
    assert np.isnan(guards.features(np.zeros((0,), np.float32), spec, 8)).all()
