"""What goes wrong with one candidate's figures costs that candidate, not the build."""

from types import SimpleNamespace

import numpy as np
import pytest

from converters.judge import metrics
from converters.judge.score import Mark, Yardstick, score
from converters.measure.host import this_host
from converters.recipes.recipes import plans
from converters.rounds import scoring
from converters.rounds.candidates import Candidate
from edgekit import profile
from edgekit.errors import DataError
from edgekit.manifest import Contract
from edgekit.samples import Samples


def test_outputs_that_cannot_be_compared_on_the_search_half_cost_the_candidate():
    def search_score(plan, found, limit, slice_limit):
        raise DataError("output 'y': shapes (1, 3) and (1, 4) cannot be compared")

    bench = SimpleNamespace(
        search=lambda artifact, plan, threads: object(), standard=SimpleNamespace(search_score=search_score)
    )
    (plan,) = plans(profile.load("x86-64-v3"), ["onnxruntime/fp32"])
    item = Candidate(plan, artifact=SimpleNamespace())
    judged = scoring.searched(bench, Contract(max_accuracy_drop=0.01), item, this_host())
    assert not judged.stands
    assert "cannot be compared" in judged.failure


@pytest.mark.parametrize(("lost", "is_broken"), [(3, False), (10, True)])
def test_what_more_samples_would_show_to_hold_is_not_mended(lost, is_broken):
    """Of 1,000 answers 3 or 10 are lost net, a limit of .02: flips both ways keep the bound beyond it; only 3 are within a
    quarter of it.
    """
    random = np.random.default_rng(0)
    source = random.random(1000) < 0.7
    turned = random.permutation(1000)
    wrong = turned[source[turned]][: 120 + lost]
    right = turned[~source[turned]][:120]
    candidate = source.copy()
    candidate[wrong], candidate[right] = False, True
    labels = np.ones(1000, int)
    samples = Samples({"x": np.zeros((1000, 1), np.float32)}, labels)
    mark = Mark(
        metrics.built_in("top1"), samples, {"value": source.astype(int)}, labels, seed=0, is_coarse=True
    )
    found = score(Yardstick(mark, None, 0), {"value": candidate.astype(int)}, None, 0.02)
    assert found.judgement.verdict == "undecided"
    assert found.is_broken == is_broken
