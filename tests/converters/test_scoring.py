"""What goes wrong with one candidate's figures costs that candidate, not the build."""

from types import SimpleNamespace

from converters.measure.host import this_host
from converters.recipes.recipes import plans
from converters.rounds import scoring
from converters.rounds.candidates import Candidate
from edgekit import profile
from edgekit.errors import DataError
from edgekit.manifest import Contract


def test_outputs_that_cannot_be_compared_on_the_search_half_cost_the_candidate():
    def search_score(plan, found, limit):
        raise DataError("output 'y': shapes (1, 3) and (1, 4) cannot be compared")

    bench = SimpleNamespace(
        search=lambda artifact, plan, threads: object(), standard=SimpleNamespace(search_score=search_score)
    )
    (plan,) = plans(profile.load("x86-64-v3"), ["onnxruntime/fp32"])
    item = Candidate(plan, artifact=SimpleNamespace())
    judged = scoring.searched(bench, Contract(max_accuracy_drop=0.01), item, this_host())
    assert not judged.stands
    assert "cannot be compared" in judged.failure
