"""What an answer rests on: the rules on models whose answer is known, and the command on a real bundle."""

import json
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from edgekit import explain, picture
from edgekit.cli import cli
from edgekit.errors import DataError, EdgeKitError, UsageError
from edgekit.explain import Asked, Explanation, Layout
from edgekit.tensors import Array

if TYPE_CHECKING:
    # Other folders' tests have a conftest too, and whichever is imported first is it.
    from conftest import BundleMaker

ENTRY = Asked("y", 0)


def linear(weights: np.ndarray) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    return lambda sample: {"y": np.array([np.sum(sample["x"] * weights)])}


# -- rules ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "kind", "axes", "grid"),
    [
        ((1, 3, 32, 40), "picture", (2, 3), (8, 8)),
        ((32, 40, 3), "picture", (0, 1), (8, 8)),
        ((1, 1, 5, 5), "picture", (2, 3), (5, 5)),
        ((16000,), "sequence", (0,), (1, 8)),
        ((1, 100, 40, 80), "sequence", (1,), (1, 8)),
        ((1, 12), "features", (1,), (1, 12)),
    ],
)
def test_an_input_falls_into_the_parts_of_its_kind(
    shape: tuple[int, ...], kind: str, axes: tuple[int, ...], grid: tuple[int, int]
) -> None:
    found = explain.layout("x", np.zeros(shape), 8)
    assert (found.kind, found.axes, found.grid) == (kind, axes, grid)
    ends = [found.part(found.grid[0] * found.grid[1] - 1)[at][1] for at in range(len(axes))]
    assert ends == [shape[axis] for axis in axes]


@pytest.mark.parametrize("shape", [(1, 1), (1,), ()])
def test_one_number_is_a_feature_beside_others(shape: tuple[int, ...]) -> None:
    sample = {"x": np.full(shape, 3.0), "age": np.arange(4.0)}
    how = explain.layout("x", sample["x"], 8)
    found = explain.explained(linear(np.ones(shape)), sample, how, ENTRY, [{"x": np.full(shape, 1.0)}])
    assert (how.kind, found.worth, how.name(0)) == ("features", [[2.0]], "0")
    assert picture.drawn(sample["x"], found).ndim == 3


def test_ids_are_replaced_by_what_other_samples_have_there() -> None:
    """Their mean would be a word of its own."""
    ids, other = np.arange(100), np.arange(100) + 7
    how = explain.layout("x", ids, 4)
    found = explain.explained(linear(np.ones(100)), {"x": ids}, how, ENTRY, [{"x": other}])
    assert (how.kind, found.worth) == ("sequence", [[-175.0] * 4])


def test_an_answer_that_is_no_number_is_not_explained() -> None:
    with pytest.raises(UsageError, match="'y' is NaN for this input"):
        explain.ask({"y": np.array([0.1, np.nan])})
    with pytest.raises(UsageError, match="entry 1 of output 'y' is -inf"):
        explain.ask({"y": np.array([0.1, -np.inf])}, index=1)
    with pytest.raises(UsageError, match="'y' is empty"):
        explain.ask({"y": np.zeros((0, 4))})


def test_what_is_masked_before_and_after_has_not_moved() -> None:
    def model(sample: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": np.stack([sample["x"], np.full(2, -np.inf)])}

    x = np.array([1.0, 2.0])
    how = explain.layout("x", x, 8)
    found = explain.explained(model, {"x": x}, how, Asked("y", None), [{"x": np.zeros(2)}])
    assert found.worth == [[1.0, 2.0]]


def test_a_patch_that_alone_decides_is_all_that_it_rests_on() -> None:
    chance = np.random.default_rng(0)
    image, weights = chance.random((1, 3, 16, 16)).astype(np.float32), np.zeros((1, 3, 16, 16), np.float32)
    weights[:, :, 4:6, 8:10] = 1
    how = explain.layout("x", image, 8)
    worth = explain.explained(linear(weights), {"x": image}, how, ENTRY).array
    wanted = float(np.sum((image - image.mean(axis=(2, 3), keepdims=True)) * weights))
    assert worth[2, 4] == pytest.approx(wanted, rel=1e-4)
    assert np.count_nonzero(np.abs(worth) > 1e-6) == 1


def test_a_feature_is_worth_what_it_is_more_than_others_have() -> None:
    weights = np.array([2.0, -1.0, 0.0])
    others = [{"x": np.array([0.0, 0.0, 9.0])}, {"x": np.array([2.0, 4.0, 1.0])}]
    sample = {"x": np.array([3.0, 1.0, 5.0])}
    how = explain.layout("x", sample["x"], 8)
    worth = explain.explained(linear(weights), sample, how, ENTRY, others).array
    assert worth[0].tolist() == pytest.approx([2 * (3 - 1), -1 * (1 - 2), 0])


def test_an_input_is_left_as_it_was_and_keeps_its_type() -> None:
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    seen = set()

    def model(sample: Mapping[str, Array]) -> dict[str, Array]:
        seen.add(sample["x"].dtype.name)
        return {"y": np.array([float(sample["x"].sum())])}

    explain.explained(model, {"x": image}, explain.layout("x", image, 8), ENTRY)
    assert seen == {"uint8"}
    assert np.array_equal(image, np.arange(64).reshape(8, 8))


def test_the_best_class_is_asked_about_and_a_map_as_a_whole() -> None:
    assert explain.ask({"y": np.array([[0.1, 0.7, 0.2]])}) == Asked("y", 1)
    assert explain.ask({"y": np.zeros((1, 1, 8, 8))}) == Asked("y", None)
    assert explain.ask({"y": np.zeros(3), "z": np.zeros(1)}, "z") == Asked("z", 0)
    with pytest.raises(UsageError, match="there is no output 'w'"):
        explain.ask({"y": np.zeros(3)}, "w")
    with pytest.raises(UsageError, match="has 3 entries"):
        explain.ask({"y": np.zeros(3)}, index=3)


def told(values: list[float]) -> Explanation:
    count = len(values)
    return Explanation(Layout("x", "features", (0,), (tuple(range(count + 1)),)), [values])


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        # scipy.stats.spearmanr([1, 2, 2, 5], [3, 1, 4, 4]) = 0.5 (ties share their places)
        ([1, 2, 2, 5], [3, 1, 4, 4], 0.5),
    ],
)
def test_similarity_is_spearmans(one: list[float], other: list[float], wanted: float) -> None:
    assert explain.similarity(told(one), told(other)) == pytest.approx(wanted)


def test_what_rests_on_nothing_is_like_nothing() -> None:
    assert math.isnan(explain.similarity(told([0, 0, 0]), told([1, 2, 3])))


# -- the picture ---------------------------------------------------------------------------------------------------------


def test_the_picture_is_a_png_whose_hottest_part_is_red() -> None:
    how = Layout("x", "picture", (0, 1), ((0, 4, 8), (0, 4, 8)))
    image = picture.drawn(np.zeros((8, 8)), Explanation(how, [[0, 2], [-1, 0]]))
    height, width, _ = image.shape
    red, blue = image[height // 4, 3 * width // 4], image[3 * height // 4, width // 4]
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 20
    data = picture.png(image)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", data[16:24]) == (width, height)
    rows = np.frombuffer(zlib.decompress(data[data.index(b"IDAT") + 4 : -16]), np.uint8).reshape(height, -1)
    assert np.array_equal(rows[:, 1:].reshape(image.shape), image)


# -- the command ---------------------------------------------------------------------------------------------------------


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["explain", *map(str, words)])


@pytest.fixture
def bundle(maker: "BundleMaker") -> Path:
    """With the float model that it was made of in `model/`, and one picture in `one.npy`."""
    path = maker.write()
    np.save(maker.folder / "one.npy", maker.golden.inputs["image"][0])
    return path


def test_the_command_sets_bundle_and_source_side_by_side(bundle: Path, tmp_path: Path) -> None:
    words = [bundle, tmp_path / "one.npy", "--source", tmp_path / "model/model.onnx", "--cells", "4"]
    ran = run(*words, "--json", "--out", tmp_path / "why.png")
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    own = told["inputs"][0]
    # The same model: the same parts.
    assert own["bundle"]["worth"] == own["source"]["worth"]
    assert own["similarity"] == pytest.approx(1)
    assert np.array(own["bundle"]["worth"]).shape == (4, 4)
    assert "not the file that this bundle was built from" in told["notes"][0]
    assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")

    shown = run(*words, "--out", tmp_path / "why.html")
    assert "rank correlation 1.000" in shown.stdout
    page = (tmp_path / "why.html").read_text()
    assert page.count("<img") == 2
    assert "default-src 'none'" in page


def test_another_model_rests_on_other_parts(
    bundle: Path, tiny_classifier: Callable[..., bytes], tmp_path: Path
) -> None:
    def other(weights: dict[str, np.ndarray]) -> None:
        weights["kernel"] = np.random.default_rng(5).normal(size=(6, 3, 3, 3)).astype(np.float32)

    (tmp_path / "other.onnx").write_bytes(tiny_classifier(other))
    ran = run(bundle, tmp_path / "one.npy", "--source", tmp_path / "other.onnx", "--json")
    assert json.loads(ran.stdout)["inputs"][0]["similarity"] < 0.9


def test_a_source_of_other_inputs_is_said_to_be_another(bundle: Path, tmp_path: Path) -> None:
    node = onnx.helper.make_node("Identity", ["other"], ["logits"])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "g", [value("other", 1, [1, 3])], [value("logits", 1, [1, 3])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "other.onnx"))
    ran = run(bundle, tmp_path / "one.npy", "--source", tmp_path / "other.onnx")
    assert isinstance(ran.exception, UsageError)
    assert "takes or gives something else than the bundle's model" in str(ran.exception)


def test_the_bundle_alone_is_explained_without_a_source(bundle: Path, tmp_path: Path) -> None:
    ran = run(bundle, tmp_path / "one.npy")
    assert ran.exit_code == 0, ran.output
    assert "what logits[" in ran.stdout
    assert "source" not in ran.stdout


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--source", "absent.onnx"], UsageError, "as an ONNX file that is there"),
        (["--out", "why.gif"], UsageError, "drawn as .png or .html"),
        (["--output", "absent"], UsageError, "there is no output 'absent'"),
        (["--entry", "3"], UsageError, "has 3 entries"),
    ],
)
def test_what_cannot_be_explained_is_said(
    bundle: Path, tmp_path: Path, words: list[str], error: type[EdgeKitError], said: str
) -> None:
    ran = run(bundle, tmp_path / "one.npy", *words)
    assert isinstance(ran.exception, error)
    assert said in str(ran.exception)


def test_several_samples_are_refused(bundle: Path, maker: "BundleMaker", tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", **maker.golden.inputs)
    ran = run(bundle, tmp_path / "all.npz")
    assert isinstance(ran.exception, DataError)
    assert "32 samples; one answer at a time" in str(ran.exception)
