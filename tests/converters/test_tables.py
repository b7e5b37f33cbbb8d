"""A build's table as a person sees it in a terminal of 100 columns, and as a pipe gets it."""

import os
import pty
import re
import subprocess
import sys

import msgspec
import pytest

from converters.commands import tables
from converters.report import numbers
from converters.sheet import Sheet
from edgekit.evidence import CandidateEvidence, Figure, OutputEvidence, Where, worst_output
from edgekit.manifest import Contract

HERE = Where(cpu="a CPU")
SLOW = "takes {} x the time of litert/static-int8 ({} to {})"
SHOW = """
import sys, msgspec
from converters.commands import tables
from converters.sheet import Sheet
tables.show(msgspec.json.decode(sys.argv[1], type=Sheet), verbose=sys.argv[2] == "verbose")
"""


def output(name, snr, **more):
    return OutputEvidence(name, "regression", "snr", snr, None, snr, floor_db=15.0, holds=snr >= 15, **more)


def candidate(recipe, status, reason, *, ms=1.0, bundle=None, outputs=(), **more):
    return CandidateEvidence(
        recipe=recipe,
        status=status,
        reason=reason,
        size_bytes=13_500,
        bundle_bytes=bundle,
        accuracy=Figure(0.9967, "measured", HERE),
        accuracy_drop=Figure(0.0033, "measured", HERE, high=0.01),
        latency_p50_ms=Figure(ms, "measured", HERE, "ms"),
        latency_p95_ms=Figure(ms * 1.5, "measured", HERE, "ms"),
        memory_mb=Figure(105.2, "measured", HERE, "MB"),
        outputs=outputs,
        **more,
    )


def sheet(**changes):
    fields = {
        "name": "heads",
        "version": "1",
        "profile": "x86-64-v3",
        "title": "any x86",
        "metric": "agreement",
        "picked": "litert/static-int8",
        "contract": Contract(max_accuracy_drop=0.05),
        "source_accuracy": Figure(1.0, "measured", HERE),
        "is_limit_default": True,
        "candidates": (
            candidate("openvino/f32", "lost", SLOW.format("7.24", "5.97", "16.96"), ms=0.0877),
            candidate("onnxruntime/fp32", "lost", SLOW.format("1.76", "1.69", "1.93"), ms=0.021),
            candidate(
                "onnxruntime/percentile-int8", "refused", "output boxes is below its floor of 15 dB",
                outputs=(output("scores", 41.0), output("a_tensor_with_a_long_name", -1.3)),
            ),
            candidate(
                "litert/static-int8", "picked", "fastest of those that meet the contract", ms=0.0113, bundle=128_400,
                outputs=(output("scores", 40.2), output("boxes", 22.1)), notes=("the pick's own note",),
            ),
            CandidateEvidence("onnxruntime/dynamic-int8", "failed", "not tried: few of the weights (2%) are in products"),
        ),
    }  # fmt: skip
    return Sheet(**(fields | changes))


GOLDEN = """\
heads 1 for x86-64-v3 (measured here); source agreement 1.0000, limit 0.05 (default)
candidate                   status  bundle/model  score   drop ≤95 % worst output      p50/p95 ms
litert/static-int8          picked   128/13.5 kB 0.9967 0.003 ≤0.010 boxes 22.1 dB    0.011/0.017
openvino/f32                lost       –/13.5 kB 0.9967 0.003 ≤0.010                  0.088/0.132
onnxruntime/fp32            lost       –/13.5 kB 0.9967 0.003 ≤0.010                  0.021/0.032
onnxruntime/percentile-int8 refused    –/13.5 kB 0.9967 0.003 ≤0.010 a_tenso… −1.3 dB   1.00/1.50
onnxruntime/dynamic-int8    failed
picked   litert/static-int8: fastest of those that meet the contract
lost     openvino/f32, onnxruntime/fp32: takes 1.76 to 7.24 x the time of litert/static-int8
refused  onnxruntime/percentile-int8: output boxes is below its floor of 15 dB
failed   onnxruntime/dynamic-int8: not tried: few of the weights (2%) are in products
"""


def on_a_terminal(shown, columns=100, how=""):
    """What a pseudo-terminal of that width gets, without its colours."""
    master, slave = pty.openpty()
    words = [sys.executable, "-c", SHOW, msgspec.json.encode(shown).decode(), how]
    env = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "NO_COLOR": "1"}
    process = subprocess.Popen(words, stdout=slave, stderr=subprocess.PIPE, env=env)
    os.close(slave)
    told = b""
    try:
        while block := os.read(master, 65536):
            told += block
    except OSError:  # a pseudo-terminal's way to say that the other side is closed
        pass
    os.close(master)
    notes = process.stderr.read().decode()
    assert process.wait() == 0, notes
    plain = re.sub(r"\x1b\[[0-9;]*m", "", told.decode())
    return [line.rstrip() for line in plain.replace("\r\n", "\n").splitlines()], notes


def through_a_pipe(shown, how=""):
    words = [sys.executable, "-c", SHOW, msgspec.json.encode(shown).decode(), how]
    env = {**os.environ, "COLUMNS": "40"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
    return [line.rstrip() for line in done.stdout.splitlines()]


def test_the_table_fits_100_columns_with_the_pick_first_and_a_reason_said_once():
    lines, _ = on_a_terminal(sheet())
    assert lines == GOLDEN.splitlines()
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("columns", [60, 80, 100, 120])
def test_no_line_is_wider_than_the_terminal_and_each_candidate_has_one(columns):
    lines, _ = on_a_terminal(sheet(), columns)
    assert max(map(len, lines)) <= columns
    for item in sheet().candidates:
        assert sum(line.startswith(item.recipe) for line in lines) == 1


@pytest.mark.parametrize("how", ["", "verbose"])
def test_a_pipe_gets_every_column_whole_however_narrow_the_terminal(how):
    lines = through_a_pipe(sheet(), how)
    told = next(line for line in lines if line.startswith("onnxruntime/percentile-int8"))
    assert "a_tensor_with_a_long_name −1.3 dB" in told
    assert told.endswith("105")
    assert not any("…" in line for line in lines)
    assert sum("(2%)" in line for line in lines) == 1


def test_verbose_tells_each_reason_note_and_output_in_full_on_a_terminal_too():
    lines, _ = on_a_terminal(sheet(), how="verbose")
    told = "\n".join(lines)
    assert "takes 7.24 x the time of litert/static-int8 (5.97 to 16.96)" in told
    assert "the pick's own note" in told
    assert re.search(
        r"percentile-int8 a_tensor_with_a_long_name +regression snr −1.3000 .* does not hold", told
    )


def test_only_the_picks_own_notes_and_what_corrupted_inputs_showed_are_told_unasked():
    shifted = f"{tables.SHIFTED} it loses 0.2 more"
    items = [
        candidate("a/one", "lost", "why", notes=("in int8: 4 of 4", shifted)),
        candidate("a/two", "lost", "why", notes=(shifted,)),
    ]
    _, notes = on_a_terminal(sheet(candidates=(*sheet().candidates, *items)))
    assert f"a/one, a/two: {shifted}" in notes
    assert "litert/static-int8: the pick's own note" in notes
    assert "in int8" not in notes


def test_a_profile_without_a_bundle_says_so_in_its_title():
    lines, _ = on_a_terminal(sheet(picked="", candidates=sheet().candidates[:3]))
    assert lines[0].startswith("no candidate meets the contract of heads 1 for x86-64-v3")


@pytest.mark.parametrize(
    ("reasons", "told"),
    [
        (["takes 2.5 x its time (2 to 3)", "takes 4 x its time (3 to 5)"], "takes 2.5 to 4 x its time"),
        (["of static-int8 3", "of static-int8 7"], "of static-int8 3 to 7"),
        (["the same (2%)", "the same (2%)"], "the same (2%)"),
        (["drop 0.1 beyond 0.05", "drop 0.2 beyond 0.05"], "drop 0.1 to 0.2 beyond 0.05"),
        (["loses +0.1", "loses -0.2"], "loses -0.2 to +0.1"),
    ],
)
def test_reasons_that_differ_in_numbers_alone_are_one_with_ranges(reasons, told):
    assert tables.merged(reasons) == told


def test_the_worst_output_is_what_does_not_hold_then_what_is_nearest_to_its_floor():
    fine, near, gone = output("fine", 40.0), output("near", 16.0), output("gone", 3.0)
    unknown = OutputEvidence("ids", "integers", "equality", 1.0, 0.01, None)
    assert worst_output((fine, gone, near)) == gone
    assert worst_output((unknown, fine, near)) == near
    assert worst_output((unknown,)) == unknown
    assert worst_output(()) is None


@pytest.mark.parametrize(
    ("bundle", "model", "told"),
    [
        (None, 13_500, "–/13.5 kB"),
        (128_400, 13_500, "128/13.5 kB"),
        (1_200_000, 934_000, "1.2/0.9 MB"),
        (92_000_000, 33_000, "92.0/0.033 MB"),
        (900, 120, "900/120 B"),
    ],
)
def test_a_bundles_size_and_its_models_are_told_in_one_unit(bundle, model, told):
    assert tables.pair_of_sizes(bundle, model) == told


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.0, "0.000"), (0.0004, "4e−4"), (-0.0123, "−0.012"), (12.345, "12.35"), (1234.5, "1234")],
)
def test_a_brief_number_never_reads_as_zero_unless_it_is(value, told):
    assert numbers.brief(value) == told
