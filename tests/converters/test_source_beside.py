"""The source is run while workers make candidates: what it is asked for, and what goes wrong with it."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from converters.work.findings import Findings
from converters.work.pool import WorkerPool
from converters.work.spent import Stopwatch
from converters.work.standard import Standard
from converters.work.workbench import Workbench
from edgekit import interrupt
from edgekit.errors import DataError


def bench_with(pool):
    bench = object.__new__(Workbench)
    bench.spent, bench.pool = Stopwatch(), pool
    return bench


def wrong_labels():
    raise DataError("the labels count from 1")


def test_workers_go_on_while_the_source_runs():
    bench, at_work = bench_with(WorkerPool(2, None, print)), threading.Event()
    with bench.beside(lambda: at_work.wait(30)):
        # Were the source asked first, this would never be reached.
        at_work.set()
    assert bench.pool.check is interrupt.check


def test_without_workers_the_source_is_asked_first():
    asked = []
    with bench_with(None).beside(lambda: asked.append(1)):
        assert asked


@pytest.mark.parametrize("pool", [None, WorkerPool(2, None, print)])
def test_what_the_source_refuses_ends_the_build(pool):
    with pytest.raises(DataError, match="count from 1"), bench_with(pool).beside(wrong_labels):
        pass


def test_what_goes_wrong_ahead_of_time_is_met_by_whoever_asks_for_it():
    """It may be a candidate's affair, which costs that candidate and not the build."""
    asked = []

    class Broken(Standard):
        @property
        def search_yardstick(self):
            asked.append(1)
            return wrong_labels()

    standard = object.__new__(Broken)
    with bench_with(None).beside(standard.look_ahead):
        pass
    assert asked
    with pytest.raises(DataError, match="count from 1"):
        standard.search_yardstick  # noqa: B018  # it is asked for


def test_it_ends_what_workers_are_still_doing(tmp_path, monkeypatch):
    """Not once they are done: a conversion may take minutes."""
    pool = WorkerPool(1, tmp_path, print)
    bench = bench_with(pool)
    plan = SimpleNamespace(name="litert/fp32", recipe=SimpleNamespace(engine="litert"))
    order = SimpleNamespace(plan=plan, is_float=True, is_trial=False, limit_s=999.0)
    # A worker that was told nothing to open waits for ever.
    monkeypatch.setattr("converters.work.pool._Worker.sends", lambda *_: None)
    try:
        with pytest.raises(DataError, match="count from 1"), bench.beside(wrong_labels):
            list(pool.run([order], lambda _: "", Findings()))
        assert pool.check is interrupt.check
    finally:
        pool.close()


def test_no_more_work_side_by_side_than_are_wanted_though_more_were_started(tmp_path, monkeypatch):
    """Two converters of a large model would be in memory together."""
    pool = WorkerPool(2, tmp_path, print)
    sent = []
    monkeypatch.setattr("converters.work.pool._Worker.sends", lambda worker, message: sent.append(worker))
    try:
        pool.start_ahead()
        pool.start_ahead()
        pool.jobs = 1
        plans = [
            SimpleNamespace(name=f"{engine}/fp32", recipe=SimpleNamespace(engine=engine))
            for engine in ("litert", "openvino")
        ]
        orders = [SimpleNamespace(plan=plan, is_float=True, is_trial=False, limit_s=9.0) for plan in plans]
        pool._hand_out(orders, lambda order: order.plan.name, Findings())
        assert [worker.order is not None for worker in pool._workers] == [True, False]
        assert len(orders) == 1
    finally:
        pool.close()


def test_labels_that_the_source_makes_nothing_of_end_a_build_before_any_bundle(digits, run_build, tmp_path):
    data = dict(np.load(digits.folder / "eval.npz"))
    data["labels"] = data["labels"] + 1
    np.savez(tmp_path / "shifted.npz", **data)
    words = digits.flags("model.onnx", "x86-64-v3")
    words[words.index("--evaluation") + 1] = str(tmp_path / "shifted.npz")
    result = run_build(*words, "--recipe", "onnxruntime/*", "--out", tmp_path / "dist", "--jobs", "2")
    assert result.exit_code == DataError.exit_code
    assert "with labels - 1 the source scores" in str(result.exception)
    assert not list((tmp_path / "dist").glob("*.edgekit"))
