"""What evaluation does only once: each sample of the source, each draw of a costly metric, each copy of an output."""

import numpy as np
import pytest

from converters.judge import accuracy, bounds, metrics
from converters.keep.artifacts import Cache
from converters.source import code, project
from converters.work import judging
from converters.work.workbench import Workbench


@pytest.fixture
def bench(digits, tmp_path):
    """The digits, judged by a metric of the user's own."""
    (tmp_path / "own.py").write_text(
        "def share(outputs, labels):\n"
        "    return float((next(iter(outputs.values())).reshape(len(labels), -1).argmax(1) == labels).mean())\n"
    )
    (tmp_path / "edgekit.toml").write_text(
        '[model]\nname = "digits"\nversion = "1.0.0"\n'
        f'source = "{digits.folder / "model.onnx"}"\n'
        "[inputs.x]\nshape = [1, 1, 8, 8]\n"
        f'[data]\ncalibration = "{digits.folder / "calib.npz"}"\nevaluation = "{digits.folder / "eval.npz"}"\n'
        'metric = "own.py:share"\n[targets.x86-64-v3]\n'
    )

    def tell(_):
        return None

    given = project.load(tmp_path / "edgekit.toml")
    return Workbench(given, code.CodeGate(True, tell), Cache(None, tell=tell), tmp_path, tell)


class Counted:
    """A model that counts its runs."""

    def __init__(self, model):
        self.model, self.runs = model, 0

    def run(self, feed):
        self.runs += 1
        return self.model.run(feed)


def counted(bench, monkeypatch):
    found = Counted(bench.source.reference)
    object.__setattr__(bench.source, "reference", found)
    return found


def test_the_source_is_run_once_on_each_sample_of_either_half(bench, monkeypatch):
    source = counted(bench, monkeypatch)
    assert len(bench.judging.judges) == 1
    halves = bench.data.halves
    for found in (bench.standard.search_reference, bench.standard.reference, bench.standard.few_reference):
        assert found.digest
    assert source.runs == sum(len(part) for half in halves for part in (half.samples, half.shifted))


# More than the search half has, and some of it.
@pytest.mark.parametrize("count", [10_000, 64])
def test_what_judging_saw_of_the_source_already_is_what_a_run_gives(bench, count, monkeypatch):
    monkeypatch.setattr(judging, "SAMPLES", count)
    assert bench.judging.judges
    assert len(bench.judging._first) == min(count, len(bench.data.halves[0].samples))
    known = bench.standard.search_reference
    assert not bench.judging._first
    again = bench.running.on_search_half(bench.source.reference)
    for mine, other in ((known.digest, again.digest), (known.outputs, again.outputs)):
        assert mine.keys() == other.keys()
        assert all(np.array_equal(mine[name], other[name]) for name in mine)


def test_what_is_kept_of_the_source_on_the_few_is_what_a_run_on_them_alone_gives(bench):
    few, again = bench.standard.few_reference, bench.running.on_few(bench.source.reference)
    for mine, other in ((few.digest, again.digest), (few.outputs, again.outputs), (few.golden, again.golden)):
        assert mine.keys() == other.keys()
        assert all(np.array_equal(mine[name], other[name]) for name in mine)
    assert len(next(iter(few.digest.values()))) == len(bench.data.few) < len(bench.data.judged) / 3


def test_the_draws_that_a_worker_makes_are_those_of_a_comparison(bench):
    class Worse:
        def run(self, feed):
            found = bench.source.reference.run(feed)
            return {name: np.round(array) for name, array in found.items()}

    found = bench.running.on_judged_half(Worse())
    clean, shifted = found.drawn
    assert clean is not None
    assert shifted is not None
    mark = bench.standard.yardstick.clean
    known, made = mark.compared(found.digest, drawn=clean), mark.compared(found.digest)
    assert known == made
    assert np.array_equal(known.bound, made.bound)


def test_of_a_metric_of_sums_nobody_draws_beside_the_outputs(bench):
    bench.judging.__dict__["metric"] = metrics.built_in("top1")
    assert bench.running.on_judged_half(bench.source.reference).drawn == (None, None)
    worse = Counted(bench.source.reference)
    assert bench.running.on_judged_half(worse).drawn == (None, None)


class Output(np.ndarray):
    """Counts how often entries are taken from it."""

    taken = 0

    def __getitem__(self, at):
        type(self).taken += 1
        return super().__getitem__(at)


def own(function):
    labels = np.arange(40) % 3
    outputs = {"y": labels.copy(), "other": np.zeros((40, 5)).view(Output)}
    Output.taken = 0
    found = bounds.own(
        metrics.users("own.py:share", function),
        outputs,
        labels,
        np.arange(40)[:, None],
        seed=0,
        is_coarse=False,
    )
    return found.figures, Output.taken


def test_a_draw_copies_only_what_the_metric_looks_at():
    figures, taken = own(lambda outputs, labels: (outputs["y"] == labels).mean())
    assert (figures == 1).all()
    assert taken == 0
    _, taken = own(lambda outputs, labels: (outputs["y"] == labels).mean() + outputs.get("other").sum())
    assert taken == bounds.DRAWS


@pytest.mark.parametrize(
    "way", [lambda outputs: outputs.copy(), lambda outputs: outputs | {}, lambda outputs: {**outputs}, dict]
)
def test_a_metric_that_goes_past_what_is_copied_gets_it_all_the_same(way):
    figures, taken = own(
        lambda outputs, labels: (way(outputs)["y"] == labels).mean() + way(outputs)["other"].sum()
    )
    assert (figures == 1).all()
    assert taken == bounds.DRAWS


def test_coarse_questions_of_large_outputs_are_drawn_less_often():
    metric = metrics.users("own.py:share", lambda outputs, labels: (outputs["y"][:, 0] == labels).mean())
    labels = np.arange(40.0)
    large = {"y": np.repeat(labels[:, None], 20_000, axis=1)}
    draws = {
        is_coarse: len(
            accuracy.resampled(metric, large, labels, sequence=None, seed=0, is_coarse=is_coarse).figures
        )
        for is_coarse in (False, True)
    }
    assert draws == {False: bounds.FEWER_DRAWS, True: bounds.COARSE_DRAWS}
