"""Builds of a model whose input has buckets: a small net that takes digits in lines of 6 to 24 columns."""

import json
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import openvino
import pytest
import torch
from msgspec import structs
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from torch import nn

from converters import backends
from converters.backends.sharing import share
from converters.source import project
from edgekit import engines, evidence, local, selftest
from edgekit.buckets import bucket_of
from edgekit.engines import LoadedBundle
from edgekit.engines.openvino import core
from edgekit.errors import EngineError, InputError, ProjectError
from edgekit.manifest import Buckets, EngineSpec, TensorSpec
from edgekit.samples import Samples, dump_npz, load_npz, rows, stacked
from edgekit.selftest import golden_inputs, run_samples

SIZES = (8, 16, 24)
SHAPE = "x=1,1,8,8|16|24"
# One recipe of each kind for every engine.
RECIPES = (
    "openvino/f32",
    "openvino/static-int8",
    "onnxruntime/fp32",
    "onnxruntime/static-int8",
    "litert/fp32",
    "litert/static-int8",
)
# Of each engine one; all of them with make proofs.
FEW = ("openvino/static-int8", "onnxruntime/fp32", "litert/fp32")
FACTORY = """
    from pathlib import Path
    import torch
    from torch import nn

    class Net(nn.Module):
        '''What is read in the whole line, and scores of every other column.'''

        def __init__(self):
            super().__init__()
            self.trunk = nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
            )
            self.head = nn.Linear(32 * 4, 10)

        def forward(self, x):
            columns = self.head(self.trunk(x).flatten(1, 2).transpose(1, 2))
            return columns.amax(1), columns

    def make():
        net = Net()
        net.load_state_dict(torch.load(Path(__file__).with_name("weights.pt"), weights_only=True))
        return net.eval()
"""
OUTPUTS = ("--output", "scores", "--output", "columns")


def in_lines(images: np.ndarray, seed: int) -> list[np.ndarray]:
    """Each digit at the start of a line: 7 to 24 columns, most of them short."""
    widths = np.random.default_rng(seed).choice(
        [7, 8, 12, 16, 20, 24], len(images), p=[0.3, 0.3, 0.1, 0.1, 0.1, 0.1]
    )
    lines = []
    for image, width in zip(images, widths, strict=True):
        line = np.zeros((1, 1, 8, width), np.float32)
        line[..., : min(width, 8)] = image[..., :width]
        lines.append(line)
    return lines


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """A folder with net.py, weights.pt, model.onnx (its last axis open), calib.npz and eval.npz."""
    folder = tmp_path_factory.mktemp("lines")
    (folder / "net.py").write_text(textwrap.dedent(FACTORY))
    namespace = {}
    exec(textwrap.dedent(FACTORY), namespace)
    torch.manual_seed(0)
    net = namespace["Net"]()
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = (data.images[order] / 16).astype(np.float32)[:, None]
    labels = data.target[order].astype(np.int64)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    x, y = torch.from_numpy(images[:1200]), torch.from_numpy(labels[:1200])
    for _ in range(15):
        for batch in torch.randperm(1200).split(50):
            optimizer.zero_grad()
            line = nn.functional.pad(x[batch], (0, int(torch.randint(0, 17, ()))))
            nn.functional.cross_entropy(net(line)[0], y[batch]).backward()
            optimizer.step()
    net.eval()
    torch.save(net.state_dict(), folder / "weights.pt")
    torch.onnx.export(
        net, (torch.zeros(1, 1, 8, 24),), str(folder / "model.onnx"), dynamo=False, opset_version=17,
        input_names=["x"], output_names=["scores", "columns"], dynamic_axes={"x": {3: "width"}, "columns": {1: "half"}},
    )  # fmt: skip
    (folder / "calib.npz").write_bytes(dump_npz(Samples({"x": stacked(in_lines(images[1200:1300], 1))})))
    evaluation = Samples({"x": stacked(in_lines(images[1300:1560], 2))}, labels[1300:1560])
    (folder / "eval.npz").write_bytes(dump_npz(evaluation))
    return folder


def flags(folder: Path, source: str, *more: str) -> list[str]:
    return [
        str(folder / source), "--name", "lines", "--version", "1", "--calibration", str(folder / "calib.npz"),
        "--evaluation", str(folder / "eval.npz"), "--max-accuracy-drop", "0.03", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module", params=[pytest.param("model.onnx", marks=pytest.mark.proof), "net.py:make"])
def built(request, lines, run_build, tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    named = OUTPUTS if ":" in request.param else ()
    recipes = FEW if ":" in request.param else RECIPES
    chosen = [word for recipe in recipes for word in ("--recipe", recipe)]
    words = flags(lines, request.param, "--shape", SHAPE, "--target", "x86-64-v3", *named, *chosen)
    result = run_build(*words, "--out", out, "--json", out / "result.json")
    assert result.exit_code == 0, result.output + result.stderr
    document = json.loads((out / "result.json").read_text())
    return SimpleNamespace(out=out, document=document, output=result.output, recipes=recipes)


def test_every_engine_makes_a_model_of_every_bucket_and_computes_what_the_source_does(built):
    found = {item["recipe"]: item for item in built.document["candidates"]}
    # A repair of one may be tried besides: whether it pays is a matter of times.
    assert set(built.recipes) <= set(found)
    for recipe, item in found.items():
        assert item["status"] != "failed", item["reason"]
        assert [each["size"] for each in item["buckets"]] == list(SIZES)
        assert item["parity"] < (1e-4 if recipe.endswith("32") else 0.3), recipe


def test_evidence_has_the_figures_of_each_bucket_and_says_what_they_were_put_together_from(built):
    entry = built.document["bundles"][0]
    told = evidence.decode(evidence.beside(Path(entry["path"])).read_bytes()).predicate
    assert [each.size for each in told.buckets] == list(SIZES)
    assert sum(each.share for each in told.buckets) == pytest.approx(1)
    assert sum(each.samples for each in told.buckets) == told.samples
    assert told.latency_p95_ms.value == max(each.latency_p95_ms.value for each in told.buckets)
    weighted = sum(each.share * each.latency_p50_ms.value for each in told.buckets)
    assert told.latency_p50_ms.value == pytest.approx(weighted)
    right = sum(each.samples * each.accuracy.value for each in told.buckets)
    assert told.accuracy.value == pytest.approx(right / told.samples)
    assert entry["buckets"][0]["latency_ms"]["p50"] == round(told.buckets[0].latency_p50_ms.value, 4)
    assert any("padding alone costs the source" in note for note in told.notes)
    assert f"{entry['recipe']} by bucket" in built.output
    assert f"{entry['recipe']} by bucket" in (built.out / "report.html").read_text()


def test_the_bundle_passes_its_self_test_which_has_samples_of_every_bucket(built):
    path = Path(built.document["bundles"][0]["path"])
    with local.opened(path) as here:
        assert here.manifest.format == 3
        assert here.manifest.buckets.sizes == SIZES
        assert [spec.shape for spec in here.manifest.outputs] == [(1, 10), (1, None, 10)]
        golden = golden_inputs(here.manifest, here.folder)
        found = [bucket_of(here.manifest.buckets, row) for row in rows(golden.inputs)]
        assert all(found.count(size) >= 8 for size in SIZES)
    assert local.verify(path).passed


def test_what_is_shipped_is_scored_again_from_the_bundle_alone_and_differs_by_bucket(built, lines):
    with local.opened(Path(built.document["bundles"][0]["path"])) as here:
        samples = load_npz(lines / "eval.npz", here.manifest.admitted)
        outputs, _ = run_samples(here.loaded.run, here.manifest.admitted, (), {}, samples)
        assert np.mean(outputs["scores"][:, 0].argmax(-1) == samples.labels) > 0.9
        assert {row["columns"].shape for row in rows(outputs)} == {(1, size // 2, 10) for size in SIZES}
        with pytest.raises(InputError, match="has 25 along axis 3; this model takes 1 to 24"):
            here.loaded.run({"x": np.zeros((1, 1, 8, 25), np.float32)})


def test_a_corrupted_model_of_one_bucket_fails_the_self_test(built, tmp_path):
    """The golden samples see each bucket's file."""
    with local.opened(Path(built.document["bundles"][0]["path"])) as here:
        models = here.manifest.buckets.models
        for wrong in range(len(models) - 1):
            swapped = (*models[:wrong], models[wrong + 1], *models[wrong + 1 :])
            buckets = structs.replace(here.manifest.buckets, models=swapped)
            manifest = structs.replace(here.manifest, buckets=buckets)
            with pytest.raises(EngineError):
                selftest.check(manifest, LoadedBundle(manifest, here.folder), here.folder)


@pytest.mark.proof
def test_outputs_that_follow_the_bucket_can_be_judged_by_agreement_with_the_source(
    lines, run_build, tmp_path
):
    """`columns` first: every sample has as many answers as its bucket has columns. Workers make the candidates."""
    (tmp_path / "net.py").write_text(
        (lines / "net.py").read_text().replace("columns.amax(1), columns", "columns, columns.amax(1)")
    )
    (tmp_path / "weights.pt").write_bytes((lines / "weights.pt").read_bytes())
    words = flags(lines, "net.py:make", "--target", "x86-64-v3", "--shape", SHAPE, "--metric", "agreement")
    words[0] = str(tmp_path / "net.py:make")
    more = (
        "--recipe",
        "onnxruntime/static-int8",
        "--recipe",
        "onnxruntime/fp32",
        "--jobs",
        "1",
        "--out",
        tmp_path,
        "--json",
        tmp_path / "r.json",
    )
    result = run_build(*words, *more)
    assert result.exit_code == 0, result.output + result.stderr
    document = json.loads((tmp_path / "r.json").read_text())
    assert all(item["accuracy"]["shipped"] > 0.9 for item in document["candidates"])
    assert local.verify(Path(document["bundles"][0]["path"])).passed


def test_a_folder_of_files_of_several_sizes_is_one_data_set(lines, run_build, tmp_path):
    samples = load_npz(lines / "eval.npz")
    (tmp_path / "eval").mkdir()
    for width in (7, 8, 12, 16, 20, 24):
        own = [index for index, row in enumerate(rows(samples.inputs)) if row["x"].shape[-1] == width]
        np.savez(
            tmp_path / "eval" / f"{width}.npz",
            x=np.stack([samples.inputs["x"][index] for index in own]),
            labels=samples.labels[own],
        )
    words = flags(
        lines, "model.onnx", "--target", "x86-64-v3", "--shape", SHAPE, "--recipe", "onnxruntime/fp32"
    )
    words[words.index("--evaluation") + 1] = str(tmp_path / "eval")
    result = run_build(*words, "--out", tmp_path, "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output + result.stderr
    [item] = json.loads((tmp_path / "r.json").read_text())["candidates"]
    assert [each["share"] for each in item["buckets"]] == [0.6, 0.2038, 0.1962]


def test_an_ethos_u_takes_no_buckets_and_says_so(lines, run_build, tmp_path):
    words = flags(lines, "model.onnx", "--target", "arm-ethos-u55-128", "--shape", SHAPE, "--out", tmp_path)
    result = run_build(*words)
    assert result.exit_code == 3
    assert "buckets are not compiled for an Ethos-U yet; give this target's input one size" in result.stderr


# What is wrong: the shape flag, and words of the message.
WRONG = {
    "buckets that descend": ("x=1,1,8,16|8", ["buckets [16, 8] must ascend", "[8, 16]"]),
    "a bucket twice": ("x=1,1,8,8|8", ["must ascend without repeats", "[8]"]),
    "a bucket of nothing": ("x=1,1,8,0|8", ["`int` >= 1"]),
    "a bucket that is no number": ("x=1,1,8,8|wide", ["expected numbers", "160|320"]),
    "two axes": ("x=1,1,8|16,8|16", ["buckets on axes 2, 3", "only one axis"]),
    "an axis that the model fixes": ("x=1,1,8|16,24", ["buckets on axis 2", "fixes at 8", "dynamic"]),
    "a sample that no bucket holds": ("x=1,1,8,8|16", ["evaluation sample", "takes 1 to 16", "add a bucket"]),
    "a bucket without samples": ("x=1,1,8,4|8|24", ["bucket 4 has no sample in the judged half", "4: 0, 8:"]),
}


@pytest.mark.parametrize(("shape", "words"), WRONG.values(), ids=WRONG)
def test_wrong_buckets_are_one_clear_sentence(shape, words, lines, run_build, tmp_path):
    result = run_build(
        *flags(lines, "model.onnx", "--target", "x86-64-v3", "--shape", shape), "--out", tmp_path / "d"
    )
    assert result.exit_code == 2
    for word in words:
        assert word in result.stderr, result.stderr
    assert not (tmp_path / "d").exists()


TWO = """
[model]
name = "n"
version = "1"
source = "model.onnx"
[inputs.ids]
shape = [1, [8, 16]]
[inputs.mask]
shape = [1, {}]
[data]
evaluation = "eval.npz"
[targets.x86-64-v3]
"""


def test_inputs_with_buckets_have_the_same_list_or_are_refused(lines, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "edgekit.toml").write_text(TWO.format("[8, 16]"))
    assert project.load(tmp_path).buckets == Buckets({"ids": 1, "mask": 1}, (8, 16))
    (tmp_path / "edgekit.toml").write_text(TWO.format("[8, 32]"))
    with pytest.raises(
        ProjectError, match=r"inputs.mask.shape has buckets \[8, 32\], and inputs.ids \[8, 16\]"
    ):
        project.load(tmp_path)
    (tmp_path / "edgekit.toml").write_text(TWO.format("16") + "[state]\nids = 'next'\n")
    with pytest.raises(ProjectError, match="a state keeps its shape"):
        project.load(tmp_path)


def test_a_model_that_was_converted_already_has_no_buckets(lines, run_build, tmp_path):
    model = core().read_model(lines / "model.onnx")
    model.reshape({"x": [1, 1, 8, 24]})
    openvino.save_model(model, tmp_path / "model.xml")
    words = flags(lines, "model.onnx", "--target", "x86-64-v3", "--shape", SHAPE)
    words[0] = str(tmp_path / "model.xml")
    result = run_build(*words, "--out", tmp_path / "d")
    assert result.exit_code == 2
    assert "has the one shape that it was converted with" in result.stderr


def layered(size: int) -> onnx.ModelProto:
    """A convolution of 36,864 weights and one of a size's own."""
    chance = np.random.default_rng(0)
    kernel = numpy_helper.from_array(chance.normal(size=(64, 64, 3, 3)).astype(np.float32), "kernel")
    own = numpy_helper.from_array(np.arange(64 * 8 * size, dtype=np.float32).reshape(1, 64, 8, size), "own")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "kernel"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Add", ["c", "own"], ["y"]),
        ],
        "layered",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64, 8, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64, 8, size])],
        [kernel, own],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(("engine", "suffix"), [("onnxruntime", ".onnx"), ("openvino", ".xml")])
def test_weights_that_all_sizes_have_are_stored_once_and_compute_the_same(engine, suffix, tmp_path):
    names = tuple(f"model-{size}{suffix}" for size in (8, 16))
    for folder in ("apart", "shared", "again"):
        (tmp_path / folder).mkdir()
        for size, name in zip((8, 16), names, strict=True):
            path = tmp_path / folder / name
            onnx.save(layered(size), str(path.with_suffix(".onnx")))
            if engine == "openvino":
                openvino.save_model(
                    core().read_model(path.with_suffix(".onnx")), path, compress_to_fp16=False
                )
                path.with_suffix(".onnx").unlink()
    for folder in ("shared", "again"):
        share(tmp_path / folder, names, backends.get(engine).move_weights)
    apart, shared, again = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("apart", "shared", "again")
    )
    assert shared == again
    assert set(shared) == {*names, "weights.bin"}
    assert sum(map(len, apart.values())) - sum(map(len, shared.values())) > 140_000
    x, y = TensorSpec("x", "float32", (1, 64, 8, 16)), TensorSpec("y", "float32", (1, 64, 8, 16))
    buckets = Buckets({"x": 3}, (8, 16), names)
    spec = EngineSpec(
        engine, "", names[-1], {"INFERENCE_PRECISION_HINT": "f32"} if engine == "openvino" else {}
    )
    both = [
        engines.load(tmp_path / folder, spec, [x], [y], buckets=buckets) for folder in ("apart", "shared")
    ]
    for width in (5, 16):
        feed = {"x": np.random.default_rng(1).normal(size=(1, 64, 8, width)).astype(np.float32)}
        before, after = (model.run(feed)["y"] for model in both)
        assert np.array_equal(before, after)


WORDS = """
    import torch
    from torch import nn

    class Net(nn.Module):
        '''The mean of words under a mask, which padding does not change.'''

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 4)

        def forward(self, ids, mask):
            kept = mask.unsqueeze(-1).to(torch.float32)
            return self.head((torch.tanh(self.table(ids)) * kept).sum(1) / kept.sum(1))

    def make():
        return Net().eval()
"""


@pytest.mark.proof
def test_two_inputs_with_buckets_step_together_and_a_mask_makes_padding_harmless(run_build, tmp_path):
    (tmp_path / "net.py").write_text(textwrap.dedent(WORDS))
    chance = np.random.default_rng(0)
    ids = [chance.integers(1, 50, (1, count)) for count in chance.integers(3, 17, 100)]
    mask = [np.ones_like(each) for each in ids]
    (tmp_path / "data.npz").write_bytes(dump_npz(Samples({"ids": stacked(ids), "mask": stacked(mask)})))
    words = [
        tmp_path / "net.py:make", "--name", "words", "--version", "1", "--target", "x86-64-v3", "--metric", "agreement",
        "--shape", "ids=1,8|16", "--dtype", "ids=int64", "--shape", "mask=1,8|16", "--dtype", "mask=int64",
        "--output", "scores", "--evaluation", tmp_path / "data.npz", "--out", tmp_path, "--json", tmp_path / "r.json",
        *(word for recipe in ("onnxruntime/fp32", "openvino/f32", "litert/fp32") for word in ("--recipe", recipe)),
    ]  # fmt: skip
    result = run_build(*words)
    assert result.exit_code == 0, result.output + result.stderr
    document = json.loads((tmp_path / "r.json").read_text())
    assert [item["parity"] < 1e-4 for item in document["candidates"]] == [True] * 3
    namespace = {}
    exec(textwrap.dedent(WORDS), namespace)
    with local.opened(Path(document["bundles"][0]["path"])) as here, torch.no_grad():
        for given in ids[:20]:
            wanted = namespace["make"]()(torch.from_numpy(given), torch.from_numpy(np.ones_like(given)))
            found = here.loaded.run({"ids": given, "mask": np.ones_like(given)})["scores"]
            assert found == pytest.approx(wanted.numpy(), abs=1e-4)
        with pytest.raises(InputError, match="ids 3 along axis 1, mask 4 along axis 1"):
            here.loaded.run({"ids": ids[0][:, :1].repeat(3, 1), "mask": mask[0][:, :1].repeat(4, 1)})
