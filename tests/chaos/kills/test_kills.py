"""Whatever happens to a device, and in whatever order: it serves right answers and comes to what was ordered.

`EDGEKIT_CHAOS=1` (`make chaos`) tries 12 stories of 28 faults each; without it one short one. A story is told by its seed:
`EDGEKIT_CHAOS_SEED=7` tells only that one again.
"""

import collections
import os
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from roof import FAULTS, GOOD, Answer, Roof, expected_digit, told  # after the line that makes it importable

_ALL = os.environ.get("EDGEKIT_CHAOS") == "1"
_ONE = os.environ.get("EDGEKIT_CHAOS_SEED")
SEEDS = [int(_ONE)] if _ONE else list(range(1, 13)) if _ALL else [1]
FAULTS_A_STORY = 28 if _ALL or _ONE else 10
BETWEEN_CHECKS = 7
# Of all stories: how long nothing was answered after each kind of fault.
SILENCES: dict[str, list[float]] = collections.defaultdict(list)


@pytest.fixture(params=SEEDS)
def roof(request, tmp_path):
    roof = Roof(tmp_path, request.param)
    try:
        roof.begin()
        yield roof
    finally:
        roof.close()


@pytest.fixture(scope="module", autouse=True)
def _tell_silences():
    yield
    for fault, lengths in sorted(SILENCES.items()):
        middle, most = statistics.median(lengths), max(lengths)
        sys.stderr.write(
            f"{fault:40} {len(lengths):4} times, silent {middle:6.2f} s, at most {most:6.2f} s\n"
        )


@pytest.mark.timeout(1200)
def test_a_device_comes_through(roof):
    names, weights = zip(*((name, weight) for name, (weight, _) in FAULTS.items()), strict=True)
    for number in range(1, FAULTS_A_STORY + 1):
        (name,) = roof.random.choices(names, weights)
        roof.happen(name)
        if number % BETWEEN_CHECKS == 0 or number == FAULTS_A_STORY:
            try:
                roof.settle()
                check(roof)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{told(roof)}") from error
    for name, seconds in roof.silences():
        SILENCES[name].append(seconds)


def check(roof):
    """What must be so whenever a device had the time to come to its order."""
    check_answers(roof.client, roof.good)
    good = {built.sha256 for built in roof.good}
    for reported in roof.fleet.reported:
        said = reported.deployments["digits"]
        assert not (said.state == "failed" and said.ordered in good), f"a good release was refused: {said}"
    # At least once: a report whose acknowledgement was lost comes again, and nothing else does.
    seen = len({(report.boot, report.seq) for report in roof.fleet.reports})
    roof.wait_for(
        lambda: len({(report.boot, report.seq) for report in roof.fleet.reports}) > seen, "a report"
    )
    assert len(roof.agent.children()) <= 2
    assert not list(roof.agent.state.rglob("*.damaged")), "something on the disk was found damaged"


def check_answers(client, good):
    """Every answer is right and of a release that may serve; where there is none, it is for want of a worker."""
    answers = [answer for answer in client.answers if answer.version]
    for version in {answer.version for answer in answers}:
        assert version in {built.manifest.version for built in good}, f"{version} served"
        assert {answer.digit for answer in answers if answer.version == version} == {expected_digit(version)}
    assert {answer.status for answer in client.answers} <= {0, 200, 503}


RIGHT = Answer(0.0, 0.1, "1.0.0", expected_digit("1.0.0"), 200)
WRONG = {
    "a wrong digit": Answer(0.0, 0.1, "1.0.0", "none", 200),
    "a release that was refused": Answer(0.0, 0.1, "66.0.0", expected_digit("66.0.0"), 200),
    "an error": Answer(0.0, 0.1, status=500),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_story_with_a_wrong_answer_would_be_seen(wrong):
    good = [SimpleNamespace(manifest=SimpleNamespace(version="1.0.0"), sha256="a")]
    client = SimpleNamespace(answers=[RIGHT])
    check_answers(client, good)
    client.answers.append(WRONG[wrong])
    with pytest.raises(AssertionError):
        check_answers(client, good)


def test_releases_of_the_story_answer_differently():
    assert len({expected_digit(f"{number}.0.0") for number in range(1, GOOD + 1)}) > 1
