"""Einsum as a matrix product: the same numbers, and int8 for what is written so."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from converters.graph import einsum

SIZES = dict(zip("bhijkd", (2, 3, 4, 1, 5, 6), strict=True))


def model(equation, weights=None, *, weights_first=False):
    """x (and w, a constant if given) → Einsum → y."""
    first, second = equation.replace(" ", "").split("->")[0].split(",")
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIZES[letter] for letter in term])
        for name, term in zip(("w", "x") if weights_first else ("x", "w"), (first, second), strict=True)
    ]
    node = helper.make_node("Einsum", [value.name for value in values], ["y"], equation=equation)
    result = [SIZES[letter] for letter in equation.replace(" ", "").split("->")[1]]
    held = [] if weights is None else [numpy_helper.from_array(weights, "w")]
    free = [value for value in values if weights is None or value.name != "w"]
    graph = helper.make_graph(
        [node], "g", free, [helper.make_tensor_value_info("y", TensorProto.FLOAT, result)], held
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answer(made, feeds):
    onnx.checker.check_model(made, full_check=True)
    return ort.InferenceSession(made.SerializeToString()).run(["y"], feeds)[0]


def operators(made):
    return [node.op_type for node in made.graph.node]


@st.composite
def equations(draw):
    """Each letter in one operand or both, and in the result or summed over, in any order."""
    kinds = {letter: draw(st.sampled_from(["batch", "left", "right", "summed", ""])) for letter in SIZES}
    kinds[draw(st.sampled_from(sorted(SIZES)))] = "summed"

    def term(*wanted):
        return "".join(draw(st.permutations([letter for letter, kind in kinds.items() if kind in wanted])))

    return f"{term('batch', 'left', 'summed')},{term('batch', 'right', 'summed')}->{term('batch', 'left', 'right')}"


@settings(max_examples=60, deadline=None)
@given(equations(), st.booleans(), st.randoms(use_true_random=False))
def test_a_product_of_two_gives_the_same_numbers_without_the_operator(equation, is_constant, random):
    rng = np.random.default_rng(random.randrange(2**32))
    terms = equation.split("->")[0].split(",")
    x, w = (rng.normal(size=[SIZES[letter] for letter in term]).astype(np.float32) for term in terms)
    given_model = model(equation, w if is_constant else None)
    made = einsum.spelled_out(given_model)
    assert "Einsum" not in operators(made)
    got = answer(made, {"x": x} if is_constant else {"x": x, "w": w})
    np.testing.assert_allclose(got, np.einsum(equation, x, w), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("equation", "spelled"),
    [
        ("bid,dk->bik", ["MatMul"]),
        ("bihd,bkhd->bhik", ["Transpose", "Transpose", "MatMul"]),
        ("bhik,bkhd->bihd", ["Transpose", "MatMul", "Transpose"]),
    ],
)
def test_a_layer_is_a_product_alone_and_attention_only_turns_its_axes(equation, spelled):
    assert operators(einsum.spelled_out(model(equation))) == spelled


def test_a_weight_that_stands_first_stands_on_the_right():
    w = np.random.default_rng(0).normal(size=(SIZES["d"], SIZES["k"])).astype(np.float32)
    made = einsum.spelled_out(model("dk,bid->bik", w, weights_first=True))
    assert operators(made) == ["MatMul"]
    assert list(made.graph.node[0].input) == ["x", "w"]


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bi,bi->bi", [[2, 4], [2, 4]]),  # entry by entry
        ("bi,k->bik", [[2, 4], [5]]),  # of all pairs
        ("bid,dk->bk", [[2, 4, 6], [6, 5]]),  # summed over in one alone
        ("bii,ik->bk", [[2, 4, 4], [4, 5]]),  # a diagonal
        ("...i,ik->...k", [[2, 4], [4, 5]]),  # any number of axes
        ("bi,ik->bk", [[2, 1], [4, 5]]),  # stretched
        ("bi,ik", [[2, 4], [4, 5]]),  # what it gives is not said
        ("bi->b", [[2, 4]]),
    ],
)
def test_what_is_no_plain_product_stays(equation, shapes):
    assert einsum.product(equation, shapes) is None


def test_a_net_of_einsums_gets_int8_in_every_engine(run_build, tmp_path):
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=size).astype(np.float32) / 6 for size in ((32, 4, 16), (4, 16, 8))]
    nodes = [
        helper.make_node("Einsum", ["x", "w0"], ["h"], equation="btd,dhk->bthk"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Einsum", ["r", "w1"], ["y"], equation="bthk,hko->bto"),
    ]
    ends = (
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 10, w])] for n, w in (("x", 32), ("y", 8))
    )
    held = [numpy_helper.from_array(each, f"w{number}") for number, each in enumerate(weights)]
    graph = helper.make_graph(nodes, "sums", *ends, held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(160, 10, 32)).astype(np.float32))
    data = str(tmp_path / "data.npz")
    found = run_build(
        str(tmp_path / "model.onnx"), "--name", "sums", "--version", "1", "--calibration", data,
        "--evaluation", data, "--metric", "cosine", "--max-accuracy-drop", "0.05", "--target", "x86-64-v3",
        "--recipe", "*/static-int8", "--out", tmp_path / "dist", "--json", tmp_path / "result.json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    candidates = json.loads((tmp_path / "result.json").read_text())["candidates"]
    plain = [each for each in candidates if each["recipe"].endswith("/static-int8")]
    assert {each["recipe"] for each in plain} == {
        f"{name}/static-int8" for name in ("litert", "onnxruntime", "openvino")
    }
    assert {each["status"] for each in plain} <= {"picked", "lost"}, found.output
