"""`edgekit.build` and `edgekit.load`: the command's build from Python, and its bundle run here."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbclient
import nbformat
import numpy as np
import onnx
import pytest
import torch
from click.testing import Result

import edgekit
from converters import api
from converters.commands import running
from converters.data import in_memory as samples_in_memory
from converters.source import in_memory
from edgekit import interrupt
from edgekit.building import BuildResult
from edgekit.errors import (
    ContractMissedError,
    DataError,
    InputError,
    ProjectError,
    SourceError,
    UsageError,
)
from edgekit.samples import load_npz

if TYPE_CHECKING:
    # Other folders' tests have a conftest too, and whichever is imported first is it.
    from conftest import Digits

EXAMPLE = Path(__file__).parents[2] / "examples/digits"
RECIPES = ["onnxruntime/fp32", "onnxruntime/static-int8"]
TARGET = "x86-64-v3"


@pytest.fixture(scope="module")
def arrays(digits: "Digits") -> dict[str, np.ndarray]:
    with np.load(digits.folder / "eval.npz") as found:
        return dict(found)


@pytest.fixture(scope="module")
def call(digits: "Digits", arrays: dict[str, np.ndarray], cache: Path) -> Callable[..., BuildResult]:
    """A build of the digits from memory, in this process; what a test names replaces the rest."""

    def build(out: Path, model: Any = None, **changed: Any) -> BuildResult:
        arguments = {
            "targets": TARGET,
            "inputs": {"x": (1, 1, 8, 8)},
            "outputs": ["logits"],
            "calibration": digits.folder / "calib.npz",
            "evaluation": (arrays["x"], arrays["labels"]),
            "max_accuracy_drop": 0.06,
            "recipes": RECIPES,
            "out": out,
            "jobs": 0,
            "cache": cache,
            "progress": False,
        }
        return edgekit.build(digits.net if model is None else model, **(arguments | changed))

    return build


@pytest.fixture(scope="module")
def built(call: Callable[..., BuildResult], tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    return call(tmp_path_factory.mktemp("built"))


# -- a build -------------------------------------------------------------------------------------------------------------


def test_a_module_in_memory_becomes_a_bundle(built: BuildResult) -> None:
    assert built.name == "net"
    bundle = built.pick()
    assert bundle == built.pick(TARGET)
    assert bundle.path.is_file()
    assert bundle.figures.status == "picked"
    assert bundle.figures.accuracy is not None
    assert bundle.figures.accuracy.how == "measured"
    assert {item.recipe for item in built.candidates[TARGET]} >= set(RECIPES)
    assert built.report.is_file()


def test_the_result_shows_itself_as_the_table(built: BuildResult) -> None:
    told, shown = str(built), built._repr_html_()
    for recipe in RECIPES:
        assert recipe in told
        assert f">{recipe}<" in shown
    assert "drop ≤95 %" in told
    assert "<script" not in shown
    assert len(repr(built)) < 5000  # a notebook's traceback shows it


def test_a_second_build_of_the_same_module_is_not_made_again(
    built: BuildResult, call: Callable[..., BuildResult], digits: "Digits", tmp_path: Path
) -> None:
    digits.net.train()
    try:
        again = call(tmp_path)
        assert digits.net.training, "the caller's module is left as it is"
    finally:
        digits.net.eval()
    assert [item.digest for item in again.bundles] == [item.digest for item in built.bundles]
    assert any("nothing changed" in note for row in again.document["profiles"] for note in row["notes"])


@pytest.mark.proof
def test_call_and_command_make_the_same_bundle(
    call: Callable[..., BuildResult],
    run_build: Callable[..., Result],
    digits: "Digits",
    tmp_path: Path,
) -> None:
    recipe = RECIPES[0]
    ran = run_build(*digits.flags("model.onnx", TARGET), "--recipe", recipe, "--out", tmp_path / "command")
    assert ran.exit_code == 0, ran.output
    made = call(
        tmp_path / "call",
        onnx.load(digits.folder / "model.onnx"),
        name="digits",
        version="1.0.0",
        outputs=(),
        recipes=[recipe],
    )
    assert made.pick().path.read_bytes() == (tmp_path / "command" / made.pick().path.name).read_bytes()


@pytest.mark.proof
def test_a_missed_contract_raises_with_its_table_or_is_told(
    call: Callable[..., BuildResult], tmp_path: Path
) -> None:
    with pytest.raises(ContractMissedError) as caught:
        call(tmp_path, targets={TARGET: {"size_mb": 0.001}})
    assert {row.recipe for row in caught.value.table} >= set(RECIPES)
    result = call(tmp_path, targets={TARGET: {"size_mb": 0.001}}, must_meet=False)
    assert result.missed
    with pytest.raises(UsageError, match="bundles of this build: none"):
        result.pick()


def test_a_project_file_is_built_with_arguments_over_it(
    digits: "Digits", arrays: dict[str, np.ndarray], cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "edgekit.toml").write_text(
        f'model = {{name = "own", version = "3", source = "{digits.folder}/model.onnx"}}\n'
        '[inputs.x]\nshape = [1, 1, 8, 8]\n[data]\nevaluation = "absent.npz"\n'
        f"[targets.{TARGET}]\nmax_accuracy_drop = 0.06\n[targets.raspberry-pi-5]\n"
    )
    result = edgekit.build(
        tmp_path, targets=TARGET, evaluation=arrays, recipes=RECIPES[:1], out=tmp_path / "dist", jobs=0,
        cache=cache, progress=False,
    )  # fmt: skip
    assert (result.name, result.version, len(result.bundles)) == ("own", "3", 1)


def test_an_interrupt_ends_the_call_and_not_the_next_one(
    call: Callable[..., BuildResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallowing(*_: Any, **__: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            return  # as native code does

    monkeypatch.setattr(running, "run", swallowing)
    # Where the tests run in the background, it is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            call(tmp_path)
        assert not interrupt.was_requested()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


# -- what is wrong -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "error", "told"),
    [
        ({"inputs": {}}, UsageError, "does not say the shapes of its inputs"),
        ({"model": object()}, UsageError, "a object is no model"),
        ({"evaluation": 7}, DataError, "holds no samples"),
        ({"evaluation": None, "calibration": None}, ProjectError, "give evaluation data"),
        ({"metric": lambda outputs, labels: 0.0}, UsageError, "not at the top of a file"),
        ({"targets": ()}, ProjectError, "name at least one profile"),
        ({"preprocess": {"y": [{"op": "scale", "factor": 1.0}]}}, ProjectError, "no such input"),
        ({"allow_code": False}, SourceError, "--no-code"),
        ({"inputs": [(1, 1, 8, 8)]}, UsageError, "inputs: a list names nothing"),
        ({"inputs": {"x": "1,1,8,8"}}, UsageError, "a str is no shape"),
        ({"inputs": {"x": (1, 1, 8, 8.0)}}, ProjectError, "Expected `int.*got `float` - at `.*shape"),
        ({"inputs": {"x": {"shape": [1], "dtype": "floaty"}}}, ProjectError, "dtype: unknown 'floaty'"),
        ({"targets": None}, UsageError, "targets = None: give names of profiles"),
        ({"targets": [7]}, UsageError, "give names of profiles"),
        ({"targets": {"x86-64-v3": 20}}, UsageError, "a mapping of each to its limits"),
        (
            {"slices": ["a", None, "b"]},
            DataError,
            r"no group for 1 samples \(the first is 1, counted from 0\)",
        ),
        ({"slices": [0.5, float("nan")]}, DataError, "no group for 1 samples"),
        ({"outputs": ["a", "a"]}, ProjectError, "names 'a' twice"),
        (
            {"evaluation": None, "calibration": np.zeros((40, 1, 8, 8), np.float32)},
            DataError,
            "39 evaluation samples, held back of the calibration data for want of others;",
        ),
        ({"outputs": [3]}, UsageError, "outputs = .* give a text, or a list"),
        ({"recipes": 3}, UsageError, "recipes = 3: give a text, or a list"),
        ({"state": ["h"]}, UsageError, "state: a list names nothing"),
        ({"jobs": -1}, UsageError, "jobs = -1: give a whole number"),
        ({"time_budget_s": 0}, UsageError, "give seconds, more than 0"),
        ({"lock": "no"}, UsageError, "lock = 'no': give one of use, write, require"),
        ({"out": __file__}, UsageError, "is a file; give a folder"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_converted(
    call: Callable[..., BuildResult],
    tmp_path: Path,
    changed: dict[str, Any],
    error: type[Exception],
    told: str,
) -> None:
    with pytest.raises(error, match=told):
        call(**({"out": tmp_path} | changed))
    assert not list(tmp_path.iterdir())


def test_one_word_is_as_good_as_a_list_of_one(call: Callable[..., BuildResult], tmp_path: Path) -> None:
    result = call(tmp_path, outputs="logits", recipes="onnxruntime/fp32", targets={TARGET: None})
    assert [item.recipe for item in result.candidates[TARGET]] == ["onnxruntime/fp32"]
    with edgekit.load(result.pick()) as model:
        assert [spec.name for spec in model.outputs] == ["logits"]


class Branching(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Counting(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (Branching(), "cannot write Branching down"),
        (Counting(), "computes something else"),
        (
            torch.nn.Linear(2, 2).bfloat16(),
            r"its weights are bfloat16: give module.float\(\), of the same values;",
        ),
        (torch.nn.Linear(2, 2).half(), r"its weights are float16: .* \(or give its inputs dtype float16\)"),
    ],
)
def test_a_module_that_cannot_be_written_down_is_refused(
    tmp_path: Path, module: torch.nn.Module, told: str
) -> None:
    with pytest.raises(SourceError, match=told):
        in_memory.write(module, {"x": {"shape": [1, 2]}}, {}, tmp_path)


@pytest.mark.proof
def test_the_same_module_is_the_same_file_in_another_process(tmp_path: Path) -> None:
    """Wherever its code stands: a notebook's cell is another file each time."""
    code = textwrap.dedent("""
        import hashlib, pathlib, sys, torch
        from converters.source import in_memory
        class Net(torch.nn.Module):
            def forward(self, x): return torch.relu(x) + 1
        path = in_memory.write(Net(), {"x": {"shape": [1, 2]}}, {}, pathlib.Path(sys.argv[1]))
        print(hashlib.sha256(path.read_bytes()).hexdigest())
    """)
    found = set()
    for name in ("one.py", "other.py"):
        folder = tmp_path / name.removesuffix(".py")
        folder.mkdir()
        (folder / name).write_text("\n" * len(name) + code)
        ran = subprocess.run(
            [sys.executable, folder / name, folder], capture_output=True, text=True, check=True
        )
        found.add(ran.stdout)
    assert len(found) == 1


# -- samples in memory ---------------------------------------------------------------------------------------------------

X = np.arange(12, dtype=np.float32).reshape(3, 4)


def one_by_one() -> Iterator[tuple[dict[str, np.ndarray], int]]:
    for index, row in enumerate(X):
        yield {"x": row}, index


@pytest.mark.parametrize(
    "given",
    [
        {"x": X, "labels": [0, 1, 2]},
        (X, np.arange(3)),
        ({"x": torch.from_numpy(X)}, torch.arange(3)),
        one_by_one(),
        [(row, index) for index, row in enumerate(X)],
    ],
)
def test_samples_are_taken_in_every_form(tmp_path: Path, given: Any) -> None:
    path = samples_in_memory.write("evaluation", given, ["x"], tmp_path / "evaluation")
    found = load_npz(path if path.is_file() else next(path.iterdir()))
    assert np.array_equal(found.inputs["x"], X)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2]


def test_a_sequence_is_not_torn_apart_between_files(tmp_path: Path) -> None:
    given = ((np.zeros(1, np.float32), 0, index // 200) for index in range(600))
    path = samples_in_memory.write("evaluation", given, ["x"], tmp_path / "evaluation")
    lengths = [len(load_npz(file)) for file in sorted(path.iterdir())]
    assert lengths == [400, 200]


def test_samples_without_labels_may_say_so(tmp_path: Path) -> None:
    found = load_npz(samples_in_memory.write("evaluation", (X, None), ["x"], tmp_path / "evaluation"))
    assert np.array_equal(found.inputs["x"], X)
    assert found.labels is None


@pytest.mark.parametrize(
    ("given", "names", "told"),
    [
        (X, ["x", "y"], "the model takes x, y"),
        (X, [], "have no names yet"),
        ([object()], ["x"], "gave a object"),
        ([], ["x"], "gave no sample"),
        ([({"x": X}, 1), {"x": X}], ["x"], "a label where that has none"),
    ],
)
def test_samples_that_are_none_are_refused(tmp_path: Path, given: Any, names: list[str], told: str) -> None:
    with pytest.raises(DataError, match=told):
        samples_in_memory.write("evaluation", given, names, tmp_path / "evaluation")


def test_a_function_in_a_file_of_its_own_is_found_by_other_processes() -> None:
    assert api._reference(textwrap.dedent) == f"{textwrap.__file__}:dedent"


# -- load ----------------------------------------------------------------------------------------------------------------


def test_a_loaded_bundle_answers_as_the_module(built: BuildResult, digits: "Digits") -> None:
    image = np.random.default_rng(0).random((1, 8, 8), np.float32)
    recipe = next(item for item in built.bundles)
    with edgekit.load(recipe) as model:
        answer = model.predict({"x": image})["logits"]
        assert np.array_equal(answer, model.predict(image)["logits"])
        assert np.array_equal(answer, model.predict_raw(torch.from_numpy(image))["logits"])
        assert "logits: float32 1x10" in repr(model)
    wanted = digits.net(torch.from_numpy(image)[None]).detach().numpy()
    assert np.abs(answer - wanted).max() < 0.2 * np.abs(wanted).max()
    with pytest.raises(UsageError, match="was closed"):
        model.predict(image)


def test_threads_share_a_loaded_bundle(built: BuildResult, arrays: dict[str, np.ndarray]) -> None:
    images = arrays["x"][:64]
    with edgekit.load(built.pick()) as model:
        alone = [model.predict_raw(image)["logits"] for image in images]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda image: model.predict_raw(image)["logits"], images))
    assert np.array_equal(alone, together)


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        (np.zeros((2, 2), np.float32), "has shape 2x2"),
        (np.zeros((1, 8, 8), np.int64), "has dtype int64"),
        ({"y": np.zeros(1)}, "unknown input 'y'"),
        ("words", "no such file|is not read"),
        ([["a"]], "not made of numbers"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(built: BuildResult, sample: Any, told: str) -> None:
    with edgekit.load(built.pick()) as model, pytest.raises((InputError, DataError), match=told):
        model.predict(sample)


@pytest.mark.parametrize("given", [None, 7, "frames.npz", b"frames", {"x": np.zeros((2, 1, 8, 8))}])
def test_what_is_no_row_of_samples_is_refused(built: BuildResult, given: Any) -> None:
    with edgekit.load(built.pick()) as model, pytest.raises(UsageError, match="give an iterable of samples"):
        model.predict_sequence(given)


@pytest.mark.parametrize("given", [None, 7, ["a.edgekit"]])
def test_what_is_no_path_is_no_bundle(given: Any) -> None:
    with pytest.raises(UsageError, match=r"is no bundle; give the path of a \.edgekit file"):
        edgekit.load(given)


@pytest.mark.proof
def test_the_notebook_of_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("digits.py", "notebook.ipynb"):
        shutil.copy(EXAMPLE / name, tmp_path)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so small a network trains faster without threads that wait
    notebook = nbformat.read(tmp_path / "notebook.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    bar, table = cells[1].outputs[0], cells[1].outputs[-1]
    assert "done after" in bar["data"]["text/html"]
    assert "onnxruntime/static-int8" in table["data"]["text/html"]
    answers = cells[-1].outputs[-1]["data"]["text/plain"]
    given, wanted = eval(answers)
    assert sum(int(one) == other for one, other in zip(given, wanted, strict=True)) >= 9
