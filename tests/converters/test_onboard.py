"""What a build does with what boards say: the pick, the files, the evidence and the result; or nothing, and it says so."""

import msgspec
import pytest

from converters import onboard
from converters.outcome import Options, Outcome
from converters.sheet import of_evidence
from edgekit import evidence
from edgekit.errors import FleetError
from edgekit.evidence import BuildEvidence, CandidateEvidence, Figure, Where
from edgekit.wire import commands as wire
from edgekit.wire.commands import Measured, Timed

NAME = "digits-1-raspberry-pi-5.edgekit"
RECIPES = {"a" * 64: "onnxruntime/fp32", "b" * 64: "onnxruntime/int8"}
GUESS = Figure(1.0, "estimated", Where("roofline"), "ms", 9.0)


def timed(digest, ms, reason=""):
    test = wire.Tested(digest, passed=not reason, reason=reason)
    return Timed(
        test, "onnxruntime", "1.32.0", 4, p50_ms=ms, p50_low_ms=ms, p50_high_ms=ms, p95_ms=ms,
        rounds_ms=() if reason else (ms,) * 12, memory_mb=40.0,
    )  # fmt: skip


@pytest.fixture
def built(tmp_path):
    """A build's folder and outcome: float is picked, int8 an alternate, both by estimates."""
    candidates = tuple(
        CandidateEvidence(recipe, word, "guessed", latency_p50_ms=GUESS, latency_p95_ms=GUESS)
        for recipe, word in zip(RECIPES.values(), ("picked", "alternate"), strict=True)
    )
    rows = []
    for digest, recipe in RECIPES.items():
        folder = tmp_path if recipe.endswith("fp32") else tmp_path / "alternates" / recipe.replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / NAME
        path.write_text(recipe)
        told = BuildEvidence(
            "digits", "1", "raspberry-pi-5", recipe, "top1", GUESS, GUESS, GUESS, GUESS, {}, candidates
        )
        evidence.beside(path).write_bytes(evidence.encode(evidence.statement(NAME, digest, told)))
        rows.append({
            "profile": "raspberry-pi-5", "path": str(path), "digest": f"sha256:{digest}", "recipe": recipe,
            "alternate": recipe.endswith("int8"), "latency_ms": {"how": "estimated"}, "budgets": {},
        })  # fmt: skip
    document = {"bundles": rows, "candidates": [{**row, "status": "guessed"} for row in rows]}
    return tmp_path, Outcome(document, (of_evidence(told),), (), tmp_path / "report.html")


def settled(built, measure_on):
    folder, outcome = built
    said = []
    return onboard.settled(outcome, Options(out=folder), measure_on, said.append), said


def test_the_board_s_pick_takes_the_place_of_the_estimate(built):
    folder, _ = built
    asked = []

    def measure_on(paths):
        asked.extend(path.read_text() for path in paths)
        return {
            "lab-07": Measured(tuple(timed(d, ms) for d, ms in zip(RECIPES, (4.0, 2.0), strict=True)), "A76")
        }

    outcome, _said = settled(built, measure_on)
    assert asked == list(RECIPES.values())
    assert (folder / NAME).read_text() == "onnxruntime/int8"
    assert (folder / "alternates" / "onnxruntime-fp32" / NAME).read_text() == "onnxruntime/fp32"
    assert not (folder / "alternates" / "onnxruntime-int8" / NAME).exists()
    told = evidence.decode(evidence.beside(folder / NAME).read_bytes(), sha256="b" * 64).predicate
    assert (told.latency_p50_ms.value, told.latency_p50_ms.how) == (2.0, "measured")
    assert msgspec.to_builtins(told.latency_p50_ms.on)["device"] == "lab-07"
    first, second = outcome.document["bundles"]
    assert (first["recipe"], first["alternate"], first["path"]) == (
        "onnxruntime/int8",
        False,
        str(folder / NAME),
    )
    assert (second["alternate"], first["latency_ms"]["p50"], second["latency_ms"]["p50"]) == (True, 2.0, 4.0)
    [sheet] = outcome.sheets
    assert (sheet.picked, sheet.boards) == ("onnxruntime/int8", "lab-07")
    assert {row["status"] for row in outcome.document["candidates"]} == {"picked", "alternate"}


def test_one_that_fails_there_is_not_picked_however_fast(built):
    folder, _ = built

    def measure_on(_paths):
        own, other = RECIPES
        return {"lab-07": Measured((timed(own, 4.0), timed(other, 1.0, "output 'y' is off")), "A76")}

    outcome, _said = settled(built, measure_on)
    assert (folder / NAME).read_text() == "onnxruntime/fp32"
    refused = next(one for one in outcome.sheets[0].candidates if one.recipe.endswith("int8"))
    assert (refused.status, "is off" in refused.reason) == ("refused", True)


def test_a_board_that_cannot_measure_leaves_the_estimate_and_that_is_said(built):
    folder, before = built

    def measure_on(_paths):
        raise FleetError("lab-07: the board was not heard of in time")

    files = {path: path.read_bytes() for path in folder.rglob("*edgekit*") if path.is_file()}
    outcome, said = settled(built, measure_on)
    assert {path: path.read_bytes() for path in files} == files
    assert outcome.document["bundles"] == before.document["bundles"]
    assert any("was not heard of in time" in note for note in outcome.sheets[0].notes)
    assert any("not measured on a board" in line for line in said)
