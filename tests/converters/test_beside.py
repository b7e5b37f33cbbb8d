"""Models of several processes that run at a time: each leaves the cores to the others, and computes the same."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from converters.recipes import facts
from converters.work import workbench
from converters.work.workbench import Workbench
from edgekit import engines
from edgekit.manifest import EngineSpec, TensorSpec


def test_these_engines_have_threads_that_would_take_the_cores_from_others():
    assert {each.name for each in facts.own() if each.beside} == {"onnxruntime", "openvino"}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_what_leaves_the_cores_to_others_changes_no_bit_of_an_output(digits, engine):
    path, known = digits.folder / "model.onnx", facts.of(engine)
    specs = [TensorSpec("x", "float32", (1, 1, 8, 8))], [TensorSpec("logits", "float32", (1, 10))]
    x = np.random.default_rng(0).random((1, 1, 8, 8), np.float32)

    def ran(options):
        model = engines.get(engine).load(path, EngineSpec(engine, "", path.name, options, 2), *specs, None)
        (found,) = model.run({"x": x}).values()
        return found

    usual = dict(known.options.always)
    np.testing.assert_array_equal(ran(usual | dict(known.beside)), ran(usual))


@pytest.mark.parametrize("is_beside", [True, False])
def test_a_worker_loads_what_it_judges_in_that_way(monkeypatch, is_beside):
    asked = []
    monkeypatch.setattr(workbench.engines, "load", lambda _folder, spec, *_, **__: asked.append(spec.options))
    bench = object.__new__(Workbench)
    bench.is_beside = is_beside
    bench._opened = (SimpleNamespace(inputs=(), outputs=(), buckets=None, sets=()), None)
    artifact = SimpleNamespace(
        folder=Path(),
        runs_here="m.onnx",
        options={"needs": "this"},
        bound=lambda *_, **__: (),
        buckets=lambda _: None,
    )
    plan = SimpleNamespace(recipe=SimpleNamespace(engine="onnxruntime"), versions="")
    bench.load(artifact, plan, {"graph_optimization_level": "all"}, 2)
    assert asked == [
        {
            "graph_optimization_level": "all",
            "needs": "this",
            **(facts.of("onnxruntime").beside if is_beside else {}),
        }
    ]
