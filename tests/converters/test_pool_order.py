"""Which order a worker is handed next."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from converters.work.findings import Findings
from converters.work.pool import WorkerPool
from edgekit.errors import ToolFailedError


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


def test_int8_waits_for_the_float_model_that_another_worker_makes():
    maker, other = SimpleNamespace(name="maker"), SimpleNamespace(name="other")
    pool = WorkerPool(2, Path(), lambda _: None)
    pool._workers, pool._float_at = [maker, other], {"litert": maker}
    waiting = [
        order("litert", is_float=False),
        order("litert", is_float=True),
        order("openvino", is_float=False),
    ]

    assert pool._for(maker, waiting) == waiting
    assert pool._for(other, waiting) == waiting[1:]
    # One that is still to be started is no other.
    assert pool._for(None, waiting) == waiting[1:]

    # Who failed at it knows why, and is asked alone; not if it is dead.
    pool._workers = [other]
    assert pool._for(other, waiting) == waiting


@pytest.mark.parametrize("is_made", [True, False])
def test_two_of_an_engine_run_side_by_side_once_its_float_model_is_there(is_made, tmp_path):
    pool, had = WorkerPool(2, tmp_path, lambda _: None), []

    def worker():
        own = SimpleNamespace(
            engines={"openvino"}, order=None, is_opened=True, shared="", sends=lambda _: None
        )

        def takes(given, shared):
            own.order, own.shared = given, shared
            had.append(given.plan.recipe.engine)

        own.takes = takes
        return own

    pool._workers = [worker(), worker()]
    waiting = [order("openvino", is_float=True), order("openvino", is_float=False)]
    known = Findings({"float": SimpleNamespace()} if is_made else {})
    pool._hand_out(waiting, lambda given: "float" if given.is_float else "int8", known)
    assert (len(had), len(waiting)) == ((2, 0) if is_made else (1, 1))


@pytest.mark.parametrize("is_made", [True, False])
def test_int8_is_anybodys_once_the_float_model_is_made(is_made):
    pool = WorkerPool(2, Path(), lambda _: None)
    found = Findings({"litert/fp32": SimpleNamespace() if is_made else ToolFailedError("no")})
    # Another engine's failure is none of it.
    found.artifacts["onnxruntime/fp32"] = ToolFailedError("no")
    maker = SimpleNamespace(
        order=order("litert", is_float=True),
        shared="litert/fp32",
        connection=SimpleNamespace(recv=lambda: found),
        rests=lambda: None,
    )
    pool._workers, pool._float_at = [maker], {"litert": maker}
    pool._heard(maker)
    assert pool._float_at == ({} if is_made else {"litert": maker})
