"""Which order a worker is handed next."""

from types import SimpleNamespace

import pytest

from converters.work.pool import WorkerPool


def order(engine, *, is_float):
    return SimpleNamespace(plan=SimpleNamespace(recipe=SimpleNamespace(engine=engine)), is_float=is_float)


@pytest.mark.parametrize(
    ("own", "others", "wanted"),
    [
        # Float before int8, of an engine that it has or that nobody has.
        ({"onnxruntime"}, {"litert"}, ("onnxruntime", True)),
        ({"litert"}, {"onnxruntime"}, ("litert", True)),
        # Its own engine's int8 before another worker's float: that may be converting it right now.
        ({"openvino"}, {"litert", "onnxruntime"}, ("openvino", False)),
        (set(), {"litert", "onnxruntime"}, ("openvino", False)),
        # Nothing but what others have: float first again.
        (set(), {"litert", "onnxruntime", "openvino"}, ("litert", True)),
    ],
)
def test_an_engine_that_another_worker_has_comes_last(own, others, wanted):
    pool = object.__new__(WorkerPool)
    worker = SimpleNamespace(engines=own)
    pool._workers = [worker, SimpleNamespace(engines=others)]
    waiting = [
        order("openvino", is_float=False),
        order("litert", is_float=True),
        order("litert", is_float=False),
        order("onnxruntime", is_float=True),
        order("onnxruntime", is_float=False),
    ]

    found = min(waiting, key=lambda item: pool._place(worker, item))

    assert (found.plan.recipe.engine, found.is_float) == wanted
