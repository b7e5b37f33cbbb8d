"""A new engine touches nothing of ours: one that is defined in this file alone, installed as another distribution would be,
is built for, judged, timed, picked, bundled and verified.

The engine runs stacks of linear layers and ReLUs with numpy, in float and in int8.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.recipes import facts
from edgekit import bundle, engines
from edgekit.plugins import ADAPTERS, BACKENDS

ROOT = Path(__file__).parents[2]
NAME = "abacus"
FILES = {
    # What runs a model on a device: one module with an ENGINE.
    "abacus_adapter.py": """
        import numpy as np

        from edgekit.errors import EngineError


        class Model:
            def __init__(self, layers, inputs, outputs):
                self.layers, self.input, self.output = layers, inputs[0].name, outputs[0].name

            def run(self, inputs):
                return {self.output: forward(self.layers, inputs[self.input])}

            def close(self):
                self.layers = []


        def forward(layers, x, seen=lambda index, x: None):
            for index, layer in enumerate(layers):
                if layer["op"] == "relu":
                    x = np.maximum(x, 0)
                    continue
                seen(index, x)
                if "x_scale" in layer:
                    x = np.clip(np.rint(x / layer["x_scale"]), -127, 127).astype(np.int32)
                    x = (x @ layer["w"].astype(np.int32)) * (layer["x_scale"] * layer["w_scale"])
                else:
                    x = x @ layer["w"]
                x = (x + layer["b"]).astype(np.float32)
            return x


        def read(path):
            try:
                with np.load(path) as file:
                    count = len(file["ops"])
                    return [
                        {"op": str(file["ops"][i])}
                        | {k.partition(".")[2]: file[k] for k in file.files if k.startswith(f"{i}.")}
                        for i in range(count)
                    ]
            except Exception as error:
                raise EngineError(f"abacus cannot load {path.name}: {error}") from error


        class Engine:
            name = "abacus"

            def version(self):
                return "1.2.0"

            def load(self, path, spec, inputs, outputs, cache):
                assert spec.options["beads"] == 10
                return Model(read(path), inputs, outputs)


        ENGINE = Engine()
    """,
    "abacus_backend/__init__.py": "",
    # What a build goes by.
    "abacus_backend/facts.py": """
        from converters.recipes.recipe import EngineFacts, LoadOptions, Recipe

        FACTS = EngineFacts(
            name="abacus",
            recipes=(
                Recipe("abacus/fp32", "abacus", "fp32", "float"),
                Recipe("abacus/static-int8", "abacus", "int8", "static"),
            ),
            tools=("numpy",),
            suffix=".abacus",
            options=LoadOptions({"beads": 10}),
        )
    """,
    # What makes a model.
    "abacus_backend/backend.py": """
        import io

        import numpy as np
        import onnx
        from onnx import numpy_helper

        from abacus_adapter import forward
        from converters.backends import Backend, Unsupported
        from converters.backends.artifact import Artifact


        class AbacusBackend(Backend):
            def convert(self, prepared, plan, folder):
                layers = read(onnx.load(str(prepared.canonical.path)).graph)
                if plan.recipe.needs_calibration:
                    layers = quantized(layers, prepared)
                arrays = {"ops": np.array([layer["op"] for layer in layers])}
                for i, layer in enumerate(layers):
                    arrays |= {f"{i}.{key}": value for key, value in layer.items() if key != "op"}
                with (folder / "model.abacus").open("wb") as file:
                    np.savez(file, **arrays)
                return Artifact(folder, "model.abacus", {})


        def read(graph):
            constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
            layers = []
            for node in graph.node:
                if node.op_type == "Relu":
                    layers.append({"op": "relu"})
                elif node.op_type == "Gemm":
                    told = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
                    w = constants[node.input[1]]
                    w = w.T if told.get("transB") else w
                    layers.append({"op": "linear", "w": w, "b": constants[node.input[2]]})
                elif node.op_type == "MatMul":
                    w = constants[node.input[1]]
                    layers.append({"op": "linear", "w": w, "b": np.zeros(w.shape[1], np.float32)})
                elif node.op_type == "Add":
                    (name,) = set(node.input) & set(constants)
                    layers[-1]["b"] = constants[name]
                else:
                    raise Unsupported(f"abacus has no {node.op_type}")
            return layers


        def quantized(layers, prepared):
            largest = {}

            def seen(index, x):
                largest[index] = max(largest.get(index, 0.0), float(np.abs(x).max()))

            (spec,) = prepared.source.inputs
            for feed in prepared.calibration():
                forward(layers, feed[spec.name], seen)
            made = []
            for index, layer in enumerate(layers):
                if layer["op"] == "linear":
                    scale = np.abs(layer["w"]).max(axis=0) / 127
                    w = np.rint(layer["w"] / scale).astype(np.int8)
                    x_scale = np.float32(largest[index] / 127)
                    layer = {**layer, "w": w, "w_scale": scale.astype(np.float32), "x_scale": x_scale}
                made.append(layer)
            return made


        BACKEND = AbacusBackend()
    """,
    "abacus_engine-1.2.0.dist-info/METADATA": """
        Metadata-Version: 2.1
        Name: abacus-engine
        Version: 1.2.0
    """,
    "abacus_engine-1.2.0.dist-info/entry_points.txt": """
        [edgekit.engines]
        abacus = abacus_adapter

        [edgekit.backends]
        abacus = abacus_backend
    """,
}


def installed(folder: Path, files: dict[str, str] = FILES) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    return folder


def profile(folder: Path, engines: str = 'abacus = ">=1,<2"') -> Path:
    """This machine's, with that engine."""
    base = "generic-arm64" if os.uname().machine == "aarch64" else "x86-64-v3"
    isa = json.dumps(["neon" if base == "generic-arm64" else "avx2"])
    path = folder / "desk.toml"
    path.write_text(
        f'extends = "{base}"\nname = "desk"\ntitle = "A desk"\nisa = {isa}\n[engines]\n{engines}\n'
    )
    return path


def python(site: Path, *words: str | Path) -> SimpleNamespace:
    """A process that finds the toy as an installed distribution, and so do its workers."""
    path = os.pathsep.join(map(str, (site, ROOT, os.environ.get("PYTHONPATH", ""))))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, check=False, env=environment
    )
    return SimpleNamespace(code=done.returncode, text=done.stdout + done.stderr)


def classifier(folder: Path) -> None:
    """Four clouds of points in sixteen dimensions, a network that tells them apart, and its data."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((4, 16)).astype(np.float32) * 2
    labels = random.integers(0, 4, 520)
    points = centres[labels] + random.standard_normal((520, 16)).astype(np.float32)
    # Each hidden unit looks at a distance: w x - b is large near the centre, and ReLU keeps it so.
    weights = {
        "w1": np.concatenate([centres.T, random.standard_normal((16, 60)).astype(np.float32)], axis=1),
        "b1": np.concatenate([-(centres**2).sum(1) / 2 + 60, np.zeros(60)]).astype(np.float32),
        "w2": np.concatenate([np.eye(4), random.standard_normal((60, 4)) * 0.01]).astype(np.float32),
        "b2": np.zeros(4, np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "clouds",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(folder / "clouds.onnx"))
    samples = points[:, None]
    np.savez(folder / "calib.npz", x=samples[:120])
    np.savez(folder / "eval.npz", x=samples[120:], labels=labels[120:])


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with the toy installed in `site`, the classifier and the profile, and one build of it."""
    folder = tmp_path_factory.mktemp("desk")
    classifier(folder)
    site = installed(folder / "site")
    here = SimpleNamespace(folder=folder, site=site, profile=profile(folder), out=folder / "dist")
    here.build = lambda: python(
        site, "-m", "edgekit", "build", folder / "clouds.onnx", "--name", "clouds", "--version", "1.0.0",
        "--calibration", folder / "calib.npz", "--evaluation", folder / "eval.npz", "--metric", "top1",
        "--max-accuracy-drop", "0.05", "--target", here.profile, "--out", here.out, "--jobs", "1",
        "--cache", folder / "cache", "--json", folder / "result.json",
    )  # fmt: skip
    here.first = here.build()
    assert here.first.code == 0, here.first.text
    here.document = json.loads((folder / "result.json").read_text())
    return here


def test_candidates_of_an_engine_defined_elsewhere_are_made_judged_and_timed(desk):
    found = {item["recipe"]: item for item in desk.document["candidates"]}
    assert set(found) == {"abacus/fp32", "abacus/static-int8"}
    for item in found.values():
        assert item["status"] != "failed", item["reason"]
        assert item["accuracy"] is not None
        assert item["latency_ms"]["p50"] > 0
    assert found["abacus/fp32"]["parity"] < 1e-4
    # It is another model, not the float one under another name.
    assert 1e-4 < found["abacus/static-int8"]["parity"] < 0.2
    assert found["abacus/static-int8"]["size_bytes"] < found["abacus/fp32"]["size_bytes"]


def test_one_of_them_is_bundled_with_its_engines_facts(desk):
    (picked,) = [item for item in desk.document["bundles"] if not item["alternate"]]
    manifest = bundle.read(Path(picked["path"])).manifest
    assert manifest.engine.name == NAME
    assert manifest.engine.versions == ">=1,<2"
    assert manifest.engine.options == {"beads": 10}
    assert manifest.engine.model == "model/model.abacus"
    # What made it, and what brought the engine.
    assert manifest.tools["abacus-engine"] == "1.2.0"
    assert "numpy" in manifest.tools


def test_the_bundle_passes_its_self_test_where_the_engine_is_and_is_refused_by_name_where_it_is_not(
    desk, tmp_path
):
    (picked,) = [item for item in desk.document["bundles"] if not item["alternate"]]
    verified = python(desk.site, "-m", "edgekit", "verify", picked["path"])
    assert verified.code == 0, verified.text
    refused = python(tmp_path, "-m", "edgekit", "verify", picked["path"])
    assert refused.code == 2
    assert "unknown engine 'abacus'" in refused.text


def test_no_file_of_ours_names_it(desk):
    assert "abacus" in (desk.site / "abacus_adapter.py").read_text()
    packages = ("edgekit", "converters", "device_agent", "fleet", "hardware_profiles")
    files = [file for package in packages for file in (ROOT / package).rglob("*") if file.is_file()]
    files += [ROOT / "pyproject.toml", ROOT / "CONTRIBUTING.md"]
    assert not [file for file in files if NAME in file.read_bytes().decode("utf-8", "replace").lower()]


def test_a_changed_engine_of_the_same_version_is_built_for_anew(desk):
    again = desk.build()
    assert again.code == 0, again.text
    notes = json.loads((desk.folder / "result.json").read_text())["bundles"][0]["notes"]
    assert any("nothing changed since the build" in note for note in notes)
    backend = desk.site / "abacus_backend" / "backend.py"
    kept = backend.read_text()
    try:
        broken = 'raise Unsupported("it is out of beads")\n        layers = read('
        backend.write_text(kept.replace("layers = read(", broken))
        anew = desk.build()
    finally:
        backend.write_text(kept)
    assert anew.code != 0
    assert "it is out of beads" in anew.text


def test_a_profile_with_it_is_read_without_loading_it_or_numpy(desk):
    script = (
        "import sys; from edgekit import profile; p = profile.load(sys.argv[1]);"
        "print(*p.engines, 'numpy' in sys.modules, 'abacus_adapter' in sys.modules)"
    )
    assert python(desk.site, "-c", script, desk.profile).text.split() == ["abacus", "False", "False"]


def test_the_agents_probe_tells_of_it(desk):
    script = "from edgekit import engines; print(engines.installed())"
    assert "'abacus': '1.2.0'" in python(desk.site, "-c", script).text


def test_an_engine_that_nothing_converts_for_is_refused_by_name(desk, tmp_path):
    alone = {name: text for name, text in FILES.items() if "backend" not in name}
    entry = "abacus_engine-1.2.0.dist-info/entry_points.txt"
    site = installed(tmp_path, {**alone, entry: "[edgekit.engines]\nabacus = abacus_adapter\n"})
    script = (
        "import sys; from edgekit import profile; from converters.recipes.recipes import plans;"
        "plans(profile.load(sys.argv[1]))"
    )
    found = python(site, "-c", script, desk.profile)
    assert "ProfileError: desk: engines.abacus: there is no converter for it here" in found.text


def test_a_name_that_two_distributions_bring_is_neither_and_costs_no_other_engine(desk, tmp_path):
    site = installed(tmp_path)
    other = {
        "rival-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: rival\nVersion: 1\n",
        "rival-1.dist-info/entry_points.txt": "[edgekit.engines]\nabacus = json\nonnxruntime = json\n",
    }
    installed(site, other)
    script = (
        "import sys; from edgekit import engines, profile; print(sorted(engines.installed()));"
        "profile.load(sys.argv[1])"
    )
    found = python(site, "-c", script, desk.profile)
    first, *rest = found.text.splitlines()
    assert first == "['litert', 'onnxruntime', 'openvino']"
    assert "both bring an engine 'abacus'; uninstall one of them" in rest[-1]


def test_a_broken_engine_of_another_distribution_costs_no_other_engine(tmp_path):
    site = installed(tmp_path, {**FILES, "abacus_adapter.py": "raise RuntimeError('bent wire')\n"})
    script = "from edgekit import engines; print(sorted(engines.installed())); engines.get('abacus')"
    first, *rest = python(site, "-c", script).text.splitlines()
    assert first == "['litert', 'onnxruntime', 'openvino']"
    assert "abacus, which abacus-engine brings, does not work here: RuntimeError('bent wire')" in rest[-1]


def test_every_engine_of_ours_has_an_adapter_and_facts_that_a_build_can_go_by():
    """A helper beside the adapters has a name that begins with an underscore."""
    assert ADAPTERS.own == BACKENDS.own
    for name in BACKENDS.own:
        known = facts.of(name)
        assert known.recipes
        assert known.suffix.startswith(".")
        assert set(facts.tools(name)) == set(known.tools)
        assert facts.foreign_digest(name) == ""
        assert engines.get(name).name == name
