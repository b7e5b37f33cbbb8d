"""`report.html`: readable without a network, complete without its charts, and loaded by a real browser."""

import re
import shutil
import subprocess

import msgspec
import pytest
from click.testing import CliRunner

from converters.commands.report import report
from converters.report import chart, folder, page
from converters.sheet import Sheet
from edgekit import evidence
from edgekit.evidence import (
    BuildEvidence,
    CandidateEvidence,
    Figure,
    LayerEvidence,
    OutputEvidence,
    TrialEvidence,
    Where,
)
from edgekit.manifest import Contract

HERE = Where(cpu="a CPU")


def candidate(recipe, status, accuracy, ms, **more):
    return CandidateEvidence(
        recipe=recipe,
        status=status,
        reason=f"why {recipe}",
        size_bytes=1000,
        accuracy=Figure(accuracy, "measured", HERE),
        accuracy_drop=Figure(0.97 - accuracy, "measured", HERE, high=0.98 - accuracy),
        latency_p50_ms=Figure(ms, "measured", HERE, "ms"),
        latency_p95_ms=Figure(ms * 1.5, "measured", HERE, "ms"),
        **more,
    )


def sheet(**changes):
    fields = {
        "name": "digits",
        "version": "1.0.0",
        "profile": "x86-64-v3",
        "title": "any x86",
        "metric": "top1",
        "picked": "litert/fp32",
        "contract": Contract(max_accuracy_drop=0.02, latency_p95_ms=4.0),
        "source_accuracy": Figure(0.97, "measured", HERE),
        "candidates": (
            candidate("litert/fp32", "picked", 0.97, 1.0),
            candidate(
                "litert/static-int8", "refused", 0.90, 0.5, layers=(LayerEvidence("<conv>", "Conv", 8.25),)
            ),
            candidate("onnxruntime/fp32", "lost", 0.97, 1.01),
            CandidateEvidence(recipe="openvino/f32", status="failed", reason="<b>no</b>"),
        ),
    }
    return Sheet(**(fields | changes))


def test_every_candidate_is_in_the_table_with_its_reason_and_the_pick_is_marked():
    told = page.render([sheet()])
    for item in sheet().candidates:
        assert item.recipe in told
    assert told.count('<tr class="picked">') == 1
    assert "why onnxruntime/fp32" in told
    assert "8.2" in told


@pytest.mark.parametrize(
    ("bundle_bytes", "says"), [(13_500, "bundle 13.5 kB, model 1.0 kB"), (None, "model 1.0 kB")]
)
def test_the_card_of_a_profile_shows_what_is_shipped_the_model_beside_it(bundle_bytes, says):
    picked = candidate("litert/fp32", "picked", 0.97, 1.0, bundle_bytes=bundle_bytes)
    told = page.render([sheet(candidates=(picked,))])
    (card,) = re.findall(r'<a href="#x86-64-v3">.*?</a>', told, re.DOTALL)
    assert f"median, measured · {says}</span>" in card


def test_text_of_models_and_tools_is_escaped():
    told = page.render([sheet()])
    assert "<b>no</b>" not in told
    assert "&lt;b&gt;no" in told
    assert "&lt;conv&gt;" in told


def test_nothing_is_fetched_and_nothing_runs():
    told = page.render([sheet()])
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\(|https?:", told)
    assert "default-src 'none'" in told


def test_a_profile_without_a_bundle_says_so():
    told = page.render([sheet(picked="", missed="all lost too much")])
    assert "No candidate meets the contract" in told
    assert "all lost too much" in told


def test_labels_never_cover_each_other():
    many = tuple(candidate(f"litert/number-{index}", "lost", 0.97, 1 + index / 50) for index in range(8))
    svg = str(chart.scatter(sheet(candidates=many), 1040, 400, are_names_shown=True))
    found = re.findall(r'class="label[^"]*" x="([\d.]+)" y="([\d.]+)">([^<]+)', svg)
    assert len(found) == 8
    places = [(float(x), float(y), len(text) * 6.4) for x, y, text in found]
    for index, (x, y, width) in enumerate(places):
        for other_x, other_y, other_width in places[:index]:
            assert abs(x - other_x) >= (width + other_width) / 2 or abs(y - other_y) >= 15 - 0.2


def test_better_is_up_also_where_less_is_better():
    falling = sheet(higher_is_better=False, metric="cer")
    assert chart.limit(falling) == pytest.approx(0.99)
    marks = dict(
        zip(
            [point.candidate.recipe for point in chart.points(falling)],
            re.findall(
                r'class="mark [^"]*" cx="[\d.]+" cy="([\d.]+)"',
                str(chart.scatter(falling, 800, 400, are_names_shown=True)),
            ),
            strict=True,
        )
    )
    assert float(marks["litert/static-int8"]) < float(marks["litert/fp32"])


def test_layers_come_in_the_order_and_with_the_divergence_that_repairs_rank_by():
    ranked = (LayerEvidence("loud", "Conv", 30.0, 0.22), LayerEvidence("quiet", "Conv", 12.0, 0.0011))
    item = candidate("openvino/static-int8", "refused", 0.9, 0.5, layers=ranked)
    told = page.render([sheet(candidates=(*sheet().candidates, item))])
    table = told.partition("What quantizing each layer costs")[2]
    assert "KL, where outputs hold probabilities" in table
    # The candidate without divergences keeps its one column.
    assert table.count("KL nats") == 1
    loud, quiet = (re.search(rf">{name} .*?width:([\d.]+)%.*?</tr>", table) for name in ("loud", "quiet"))
    assert loud.start() < quiet.start()
    assert float(loud[1]) == 100
    assert float(quiet[1]) == 1
    assert ">0.2200<" in loud[0]
    assert ">30.0<" in loud[0]


def test_without_divergences_the_page_has_no_word_of_them():
    assert "KL nats" not in page.render([sheet()])
    assert "Kullback" not in page.render([sheet()])


@pytest.mark.browser
def test_a_browser_shows_the_pick(tmp_path):
    browser = shutil.which("chromium") or pytest.skip("there is no Chromium")
    file = tmp_path / "report.html"
    file.write_text(page.render([sheet()]), encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert 'class="label middle picked"' in done.stdout
    assert "litert/fp32" in done.stdout


def trial(number, loss, cost, **more):
    return TrialEvidence(
        number,
        "onnxruntime/static-int8",
        loss=Figure(loss, "measured", HERE),
        cost=Figure(cost, "measured", HERE, "ms"),
        **more,
    )


def test_a_searchs_front_is_drawn_and_listed_and_its_other_trials_are_only_drawn():
    told = page.render([
        sheet(
            trials=(
                trial(0, 0.4, 1.0, is_on_front=True),
                trial(1, 0.01, 1.2, holds=True, is_on_front=True, settings={"calibration": "<mse>"}, candidate="c+search1"),
                trial(2, 0.5, 1.3, settings={"ops": "off the front"}),
                TrialEvidence(3, "onnxruntime/static-int8", failure="broke"),
            )
        )
    ])  # fmt: skip
    drawn, _, listed = told.partition("What the search tried")[2].partition("</svg>")
    assert drawn.count('<circle class="mark') == 3
    assert drawn.count("hollow") == 2
    assert "calibration &lt;mse&gt;" in listed
    assert "c+search1" in listed
    assert "off the front" not in listed
    assert "Failed: 1." in listed


def test_without_a_search_the_page_has_no_such_part():
    assert "What the search tried" not in page.render([sheet()])


def test_the_page_says_when_the_build_was_and_whose_limit_it_kept_to():
    told = page.render([sheet(built="2026-11-26T19:50:42+00:00", is_limit_default=True)])
    assert "26 November 2026, 19:50 UTC" in told
    assert "0.02 (the default, as none was set)" in told
    plain = page.render([sheet()])
    assert "Built on" not in plain
    assert "default" not in plain.partition("<body>")[2]


def test_the_pick_is_the_first_row_and_the_charts_numbers_are_the_tables():
    last = sheet(candidates=(*sheet().candidates[1:], sheet().candidates[0]))
    table = page.render([last]).partition("What was tried")[2]
    rows = re.findall(r'<span class="row-number">(\d+) </span><span class="dot"></span>([^<]+)</td>', table)
    assert rows[0] == ("1", "litert/fp32")
    assert {(str(point.number), point.candidate.recipe) for point in chart.points(last)} <= set(rows)


def test_one_bad_candidate_does_not_press_the_others_into_a_corner():
    items = (
        candidate("litert/fp32", "picked", 0.97, 1.0),
        candidate("onnxruntime/fp32", "lost", 0.968, 1.3),
        candidate("litert/static-int8", "refused", 0.10, 0.5),
    )
    svg = str(chart.scatter(sheet(candidates=items), 1040, 400, are_names_shown=True))
    marks = [float(y) for y in re.findall(r'class="mark [^"]*" cx="[\d.]+" cy="([\d.]+)"', svg)]
    assert len(marks) == 2
    assert abs(marks[0] - marks[1]) > 15  # 0.002 apart, and told apart
    assert svg.count("mark beyond") == 1
    assert "litert/static-int8: 0.1000" in svg


def test_a_long_tail_does_not_press_the_medians_together():
    def spread(p95):
        slow = msgspec.structs.replace(
            candidate("onnxruntime/fp32", "lost", 0.97, 2.0),
            latency_p95_ms=Figure(p95, "measured", HERE, "ms"),
        )
        items = (candidate("litert/fp32", "picked", 0.97, 0.5), slow)
        svg = str(chart.scatter(sheet(candidates=items), 1040, 400, are_names_shown=True))
        left, right = (float(x) for x in re.findall(r'class="mark [^"]*" cx="([\d.]+)"', svg))
        return right - left

    assert spread(2000.0) > 0.6 * spread(2.2)


def test_every_output_is_on_the_page_and_what_does_not_hold_is_marked():
    outputs = (
        OutputEvidence("scores", "scores", "agreement", 0.99, 0.02, 31.0, limit=0.05, floor_db=15.0),
        OutputEvidence("<boxes>", "regression", "snr", -1.3, None, -1.3, "2-5", floor_db=15.0, holds=False, reason="below its floor"),
    )  # fmt: skip
    item = candidate("litert/static-int8", "refused", 0.97, 0.5, outputs=outputs, bundle_bytes=128_400)
    told = page.render([sheet(candidates=(*sheet().candidates, item))])
    table = told.partition("Every output against the float source")[2]
    assert table.count("does not hold") == 1
    assert "&lt;boxes&gt;" in table
    assert "−1.3" in table  # noqa: RUF001  # the page's own minus
    assert "below its floor" in table
    assert '<span class="bad">&lt;boxes&gt;' in told
    assert "128 kB" in told
    assert "Every output" not in page.render([sheet()])


def _left_by_a_build(path, profile, version="1.0.0", built="2026-11-20T10:00:00+00:00"):
    figure = Figure(0.97, "measured", HERE)
    told = BuildEvidence(
        "digits", version, profile, "litert/fp32", "top1", figure, figure, figure, figure, {}, sheet().candidates,
        built=built,
    )  # fmt: skip
    path.write_bytes(evidence.encode(evidence.statement("a.edgekit", "0" * 64, told)))


def test_the_page_of_a_folder_has_every_target_built_into_it(tmp_path):
    _left_by_a_build(tmp_path / "digits-1.0.0-raspberry-pi-5.evidence.json", "raspberry-pi-5")
    _left_by_a_build(tmp_path / "digits-1.0.0-x86-64-v3.evidence.json", "x86-64-v3")
    _left_by_a_build(tmp_path / "digits-0.9.0-intel-n100.evidence.json", "intel-n100", version="0.9.0")
    (tmp_path / "torn.evidence.json").write_text("{")
    now = sheet(picked="", missed="all lost too much", built="2026-11-26T19:50:42+00:00")
    told = folder.write(tmp_path, [now]).read_text()
    assert re.findall(r'<section class="profile" id="([^"]+)"', told) == ["x86-64-v3", "raspberry-pi-5"]
    assert "all lost too much" in told
    assert "26 November 2026" in told


def test_report_takes_a_folder(tmp_path):
    _left_by_a_build(tmp_path / "a.evidence.json", "raspberry-pi-5")
    out = tmp_path / "page.html"
    done = CliRunner().invoke(report, [str(tmp_path), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert 'id="raspberry-pi-5"' in out.read_text()
