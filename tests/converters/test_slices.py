"""What each group of the samples loses: judged, said, and part of the contract."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import torch
from click.testing import Result
from sklearn.datasets import load_digits
from torch import nn

import edgekit
from converters.commands import notebook
from converters.data import halves, sliced
from converters.judge import metrics, score, slices
from converters.judge.accuracy import ALONE, ALPHA, Place
from converters.judge.slices import Share
from converters.report import page
from converters.source.code import CodeGate
from edgekit import evidence
from edgekit.building import BuildResult
from edgekit.errors import ContractMissedError, DataError
from edgekit.samples import Samples

if TYPE_CHECKING:
    # Other folders' tests have a conftest too, and whichever is imported first is it.
    from conftest import Digits

TOP1 = metrics.built_in("top1")


def marked(names: list[str], sequence: np.ndarray | None = None, metric: metrics.Metric = TOP1) -> score.Mark:
    """A source that is right about every sample; its digest are answers."""
    count = len(names)
    samples = Samples({"x": np.zeros((count, 1))}, np.zeros(count, np.int64), sequence, np.array(names))
    return score.Mark(metric, samples, {"value": np.zeros(count, np.int64)}, samples.labels, 0, False)


def judged(
    mark: score.Mark, wrong: list[int], limit: float | None, place: Place = ALONE, *, same: bool = False
) -> dict[str, slices.SliceScore]:
    """Of a candidate that answers those samples wrong."""
    answers = np.zeros(len(mark.samples), np.int64)
    answers[wrong] = 1
    found = slices.scores(mark.by_slice, {"value": answers}, limit, place, is_same_function=same)
    return {item.name: item for item in found}


NAMES = ["common"] * 200 + ["rare"] * 100


def test_a_group_that_loses_more_than_its_limit_is_missed_though_the_whole_is_not() -> None:
    found = judged(marked(NAMES), list(range(200, 220)), 0.1)
    assert found["rare"].drop == pytest.approx(0.2)
    assert found["rare"].is_missed
    assert found["common"].judgement.verdict == "met"
    verdict = slices.verdict(list(found.values()))
    assert verdict.verdict == "missed"
    assert verdict.reason.startswith("group rare: drop +0.2000")
    assert "common" not in verdict.reason


def test_the_same_losses_elsewhere_are_another_groups() -> None:
    """Damage to the names must show: twenty of two hundred keep the limit."""
    found = judged(marked(["rare"] * 100 + ["common"] * 200), list(range(200, 220)), 0.15)
    assert not found["rare"].drop
    assert found["common"].drop == pytest.approx(0.1)


@pytest.mark.parametrize("wrong", [[], [200], [200, 201]])
def test_a_group_of_too_few_samples_is_never_passed_nor_refused(wrong: list[int]) -> None:
    found = judged(marked(["common"] * 200 + ["rare"] * 8), wrong, 0.1)["rare"]
    assert found.is_undecided
    # ln(0.025) / ln(0.9), of two groups; as many again to search on.
    assert "36" in found.reason
    assert "72 samples" in found.reason


def test_a_group_that_is_all_wrong_is_missed_however_small() -> None:
    assert judged(marked(["common"] * 200 + ["rare"] * 8), list(range(200, 208)), 0.1)["rare"].is_missed


def test_what_computes_the_same_needs_no_number_of_samples() -> None:
    found = judged(marked(["common"] * 200 + ["rare"] * 8), [], 0.1, same=True)
    assert found["rare"].judgement.verdict == "met"


def test_without_a_limit_nothing_is_judged_and_all_is_told() -> None:
    found = judged(marked(NAMES), [200], None)
    assert slices.verdict(list(found.values())) is None
    assert found["rare"].accuracy.low < found["rare"].drop < found["rare"].accuracy.bound


def test_groups_and_candidates_share_the_error() -> None:
    for count, groups in ((1, 1), (1, 4), (3, 4)):
        shares = [Share(index, count, groups).alpha for index in range(count)]
        assert groups * sum(shares) == pytest.approx(ALPHA)
    alone = judged(marked(["rare"] * 100), [0], 0.1)["rare"].accuracy.bound
    among = judged(marked(["rare"] * 100 + ["common"] * 200), [0], 0.1)["rare"].accuracy.bound
    third = judged(marked(NAMES), [200], 0.1, Place(2, 3))["rare"].accuracy.bound
    assert alone < among < third


@pytest.mark.proof
def test_groups_that_lose_their_limit_and_more_rarely_pass() -> None:
    """Three candidates of two groups each, all of which lose a little more than they may: any that passes is an error."""
    chance, limit, errors, rounds = np.random.default_rng(0), 0.1, 0, 200
    mark = marked(["a"] * 120 + ["b"] * 120)
    for _ in range(rounds):
        found = [
            judged(mark, np.flatnonzero(chance.random(240) < limit + 1e-6).tolist(), limit, Place(index, 3))
            for index in range(3)
        ]
        errors += any(item.judgement.verdict == "met" for each in found for item in each.values())
    assert errors <= 0.05 * rounds + 3 * np.sqrt(0.05 * 0.95 * rounds)


def test_a_metric_that_says_nothing_of_a_group_passes_nobody() -> None:
    def ours(outputs: dict[str, np.ndarray], labels: np.ndarray) -> float:
        if len(labels) < 50:
            raise ValueError("too few")
        return float(np.mean(outputs["value"] == labels))

    metric = metrics.users("ours", ours)
    found = judged(marked(["common"] * 200 + ["rare"] * 8, metric=metric), [], 0.1)
    assert found["rare"].accuracy is None
    assert found["rare"].is_undecided
    assert "too few" in found["rare"].reason
    assert found["common"].judgement.verdict == "met"


def test_a_repair_aims_at_the_worst_group() -> None:
    mark = marked(NAMES)
    answers = np.zeros(300, np.int64)
    answers[200:215] = 1

    def scored(limit: float | None) -> score.Score:
        return score.score(score.Yardstick(mark, None, 0), {"value": answers}, None, 0.2, slice_limit=limit)

    assert scored(None).is_kept
    assert scored(None).badness == pytest.approx(0.05)
    # A loss of .15 where .1 is allowed, beside a limit of .2 for the whole.
    assert not scored(0.1).is_kept
    assert scored(0.1).badness == pytest.approx(0.3)


# -- names ---------------------------------------------------------------------------------------------------------------


def test_a_sequence_in_two_groups_is_refused() -> None:
    with pytest.raises(DataError, match="sequence 1 lies in 'b' and in 'a'"):
        slices.groups(np.array(["a", "b", "a"]), np.array([0, 1, 1]))


def test_an_id_of_each_sample_is_no_group() -> None:
    with pytest.raises(DataError, match="100 groups, at most 64"):
        slices.groups(np.arange(100).astype(str), None)


def test_groups_of_one_sample_each_leave_nothing_to_search_on() -> None:
    names = np.array([f"user {index}" for index in range(200)])
    with pytest.raises(DataError, match=r"slices name 200 groups, none of more than one sample"):
        halves.split(200, None, 0, names)


def test_each_group_is_halved() -> None:
    names = np.array(["common"] * 91 + ["rare"] * 9)
    for seed in range(20):
        search, judged_ = halves.split(100, None, seed, names)
        assert sorted((*search, *judged_)) == list(range(100))
        assert [int(np.sum(names[half] == "rare")) for half in (search, judged_)] == [4, 5]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise KeyError('x')", "function of slices failed: .*groups.py, line 2: KeyError"),
        ("return 'one'", "expected one name a sample"),
        ("return [0.5] * len(labels)", "expected one name a sample"),
    ],
)
def test_a_function_that_names_no_groups_is_refused(tmp_path: Path, body: str, told: str) -> None:
    (tmp_path / "groups.py").write_text(f"def by(inputs, labels):\n    {body}\n")
    samples = Samples({"x": np.zeros((3, 1))}, np.zeros(3))
    with pytest.raises(DataError, match=told):
        sliced.read("groups.py:by", tmp_path, CodeGate(True, lambda _: None), samples, 0)


def test_a_file_without_groups_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "groups.npz", names=np.array(["a"]))
    with pytest.raises(DataError, match="has no array 'slices'"):
        sliced.read(
            "groups.npz", tmp_path, CodeGate(True, lambda _: None), Samples({"x": np.zeros((1, 1))}), 0
        )


@pytest.mark.parametrize(
    ("slices_", "told"),
    [
        (None, "max_drop_per_slice needs the group of each evaluation sample"),
        ("def by(inputs, labels): return ['a'] * 7", "7 names of groups for 497 evaluation samples"),
    ],
)
def test_a_limit_of_groups_that_are_not_there_is_refused(
    digits: "Digits", run_build: Callable[..., Result], tmp_path: Path, slices_: str | None, told: str
) -> None:
    words = [
        *digits.flags("model.onnx", "x86-64-v3"),
        "--max-drop-per-slice",
        "0.1",
        "--out",
        tmp_path / "out",
    ]
    if slices_:
        (tmp_path / "groups.py").write_text(slices_)
        words += ["--slices", f"{tmp_path}/groups.py:by"]
    ran = run_build(*words)
    assert ran.exit_code == 2
    assert told in ran.stderr


# -- a rare group that int8 loses first ----------------------------------------------------------------------------------

FAINT = np.float32(1 / 150)


class Blind(nn.Module):
    """To how strong a pen writes: what a digit is does not depend on it, in float."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 12, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(1, 12, eps=1e-8)
        self.rest = nn.Sequential(
            nn.ReLU(), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(384, 10)
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(self.norm(self.first(x)))


@pytest.fixture(scope="module")
def faint(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., BuildResult]:
    """A build of digits of which some were written with a pen that hardly writes: two levels of int8 where others have
    all 255.
    """
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images, labels = (data.images[order] / 16).astype(np.float32)[:, None], data.target[order]
    torch.manual_seed(0)
    net = Blind()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    x, y = torch.from_numpy(images[:1000]), torch.from_numpy(labels[:1000])
    for _ in range(12):
        for batch in torch.randperm(1000).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()

    def build(**changed: Any) -> BuildResult:
        arguments = {
            "targets": "x86-64-v3",
            "inputs": {"x": (1, 1, 8, 8)},
            "outputs": ["logits"],
            "calibration": np.concatenate([images[1000:1095], FAINT * images[1095:1100]]),
            "evaluation": {
                "x": np.concatenate([images[1100:], FAINT * images[1100:1260]]),
                "labels": np.concatenate([labels[1100:], labels[1100:1260]]),
                "slices": np.array(["plain"] * 697 + ["faint"] * 160),
            },
            "max_accuracy_drop": 0.1,
            "recipes": ["onnxruntime/static-int8"],
            "out": tmp_path_factory.mktemp("faint"),
            "cache": cache,
            "jobs": 0,
            "progress": False,
        }
        return edgekit.build(net, **(arguments | changed))

    return build


@pytest.mark.proof
def test_a_candidate_that_loses_a_rare_group_is_refused_and_mended(
    faint: Callable[..., BuildResult],
) -> None:
    result = faint(max_drop_per_slice=0.1)
    bundle = result.pick()
    assert bundle.recipe == "onnxruntime/static-int8+mixed"
    plain = next(item for item in result.candidates["x86-64-v3"] if item.recipe == "onnxruntime/static-int8")
    assert plain.status == "refused"
    assert "group faint: drop" in plain.reason
    # The whole keeps its limit: nothing else would have told.
    assert plain.accuracy_drop.high < 0.1
    lost = {each.name: each for each in plain.slices}
    assert (lost["faint"].verdict, lost["plain"].verdict) == ("missed", "met")
    kept = {each.name: each for each in bundle.figures.slices}
    assert kept["faint"].high <= 0.1
    assert kept["faint"].samples == 80

    told = evidence.decode(evidence.beside(bundle.path).read_bytes())
    assert {each.name for item in told.predicate.candidates for each in item.slices} == {"plain", "faint"}
    assert "lost by group" in result.report.read_text()
    assert "faint (80)" in result.report.read_text()
    assert "top1 lost by group, limit 0.1 each" in str(result)
    assert "faint (80)" in result._repr_html_()
    rows = {row["recipe"]: row for row in result.document["candidates"]}
    assert json.dumps(rows["onnxruntime/static-int8"]["slices"]).count('"verdict": "missed"') == 1


@pytest.mark.proof
def test_without_a_limit_the_loss_is_shown_and_shipped(faint: Callable[..., BuildResult]) -> None:
    result = faint()
    assert result.pick().recipe == "onnxruntime/static-int8"
    assert next(each for each in result.pick().figures.slices if each.name == "faint").drop > 0.1


@pytest.mark.proof
def test_too_few_of_a_group_are_said_and_not_passed(faint: Callable[..., BuildResult]) -> None:
    """Nor by the lenience that a default limit has."""
    with pytest.raises(ContractMissedError, match=r"group faint: .*would") as caught:
        faint(max_drop_per_slice=0.02, max_accuracy_drop=None)
    assert all(row.status != "picked" for row in caught.value.table)


def test_the_page_says_what_was_not_judged() -> None:
    """A sheet of an older build has no groups, and no heading for them."""
    table = {"name": "m", "version": "1", "profile": "p", "title": "t", "metric": "top1", "picked": "", "contract": {},
             "candidates": [{"recipe": "r", "status": "lost", "reason": "x"}], "built": "2026-01-01T00:00:00+00:00"}  # fmt: skip
    from converters.sheet import Sheet

    sheet = msgspec.convert(table, Sheet)
    assert "lost by group" not in page.render([sheet])
    assert "lost by group" not in notebook.html([sheet])
