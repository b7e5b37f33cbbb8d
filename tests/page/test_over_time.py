"""What devices see beside the reference, and an experiment's difference over time: from what devices say to the picture."""

import math
import re
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from access_support import NOW
from fleet_support import make_bundle
from hypothesis import given
from hypothesis import strategies as st
from page_support import Site
from sqlalchemy import delete, insert

from edgekit import bundle
from edgekit.manifest import Histogram, Reference
from edgekit.wire import topics
from edgekit.wire.messages import Boot, DeploymentWindow, Report, encode
from fleet import api
from fleet.api.history import ArmName
from fleet.rules import experiment, seen, telling
from fleet.rules import history as rules
from fleet.rules.history import ArmSums
from fleet.rules.seen import Seen
from fleet.server import drifting, ingest, schema, trials
from fleet.server.clock import same
from fleet.server.inbox import Message
from fleet.server.schema_experiments import experiments, units
from fleet.server.schema_history import references
from fleet.server.store import audit, history, releases
from fleet.server.store import experiments as store
from fleet.server.web import charts
from fleet.server.web.bars import Bars

EDGES = [0.0, 0.25, 0.5, 0.75, 1.0]
REFERENCE = Reference(
    inputs={"image": Histogram(EDGES, [250, 250, 250, 250])},
    outputs={"logits": Histogram(EDGES, [100, 0, 0, 100])},
    confidence={"logits": Histogram(EDGES, [0, 0, 0, 100])},
)
SHA256 = "d" * 64


def window(digest: str, image: list[int], logits: list[int] | None = None) -> DeploymentWindow:
    outputs = {"logits": Histogram(EDGES, logits)} if logits is not None else {}
    return DeploymentWindow("digits", digest, 10, inputs={"image": Histogram(EDGES, image)}, outputs=outputs)


# --- rules ---


def _things(bins: dict[str, int]) -> st.SearchStrategy[tuple[str, list[int]]]:
    """Counts of labels, each with its bins; one has more than are taken."""
    return st.sampled_from(sorted(bins)).flatmap(
        lambda label: st.tuples(
            st.just(label), st.lists(st.integers(0, 2**53), min_size=bins[label], max_size=bins[label])
        )
    )


SEEN = st.lists(_things({"a": 1, "b": 10, "c": 64, "d": 65}), max_size=6)


def windows(made: list[tuple[str, list[int]]]) -> Seen:
    found: Seen = {}
    for label, counts in made:
        edges = [float(at) for at in range(len(counts) + 1)]
        seen.add(found, DeploymentWindow("d", "a" * 64, inputs={label: Histogram(edges, counts)}))
    return found


@given(SEEN, SEEN)
def test_what_devices_say_stays_bounded_however_it_is_added_up(
    one: list[tuple[str, list[int]]], other: list[tuple[str, list[int]]]
) -> None:
    both = seen.together(windows(one), windows(other))
    assert both == windows(one + other)
    assert all(len(counts) <= seen.MOST_BINS and max(counts) <= 2**53 for counts in both.values())
    assert "inputs/d" not in both
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(both)) == both


def test_no_more_things_are_kept_than_a_bundle_may_have() -> None:
    found = windows([(f"x{n}", [1]) for n in range(200)])
    assert len(found) == seen.MOST


@given(st.permutations([("a", [1, 2]), ("a", [3, 4]), ("b", [5]), ("b", [6])]))
def test_the_order_of_windows_makes_no_difference(made: list[tuple[str, list[int]]]) -> None:
    assert windows(made) == {"inputs/a": [4, 6], "inputs/b": [11]}


def test_nothing_is_compared_that_the_reference_does_not_have_with_as_many_bins() -> None:
    assert seen.compare(REFERENCE, {"inputs/image": [1, 2], "inputs/other": [1, 1, 1, 1]}) == []
    assert seen.compare(REFERENCE, {"inputs/image": [0, 0, 0, 0]}) == []


def test_what_moved_most_comes_first_and_few_values_say_nothing() -> None:
    counts = {"outputs/logits": [0, 0, 0, 100], "inputs/image": [90, 10, 0, 0]}
    image, logits = seen.compare(REFERENCE, counts)
    assert (image.label, image.elsewhere) == ("image", pytest.approx(0.65))
    assert (logits.label, logits.elsewhere) == ("logits", pytest.approx(0.5))
    [few] = seen.compare(REFERENCE, {"inputs/image": [9, 0, 0, 0]})
    assert few.elsewhere is None


def test_a_picture_has_each_bin_and_its_table_the_same_figures() -> None:
    [one] = seen.compare(REFERENCE, {"inputs/image": [900, 100, 0, 0]})
    bars = Bars(one)
    assert [(row.words, row.found) for row in bars.bins] == [
        ("below 0.25", 0.9), ("0.25 to 0.5", 0.1), ("0.5 to 0.75", 0.0), ("from 0.75", 0.0),
    ]  # fmt: skip
    assert bars.svg.count('class="have"') == bars.svg.count('class="want"') == 4
    assert "below 0.25: 90.0% of what devices say, 25.0% of the reference" in bars.svg
    for y, height in re.findall(
        r'class="(?:have|want)" x="[^"]*" y="([^"]*)" width="[^"]*" height="([^"]*)"', bars.svg
    ):
        assert float(y) >= 0
        assert float(y) + float(height) == pytest.approx(160, abs=0.1)


# --- from reports to the page ---


def published(site: Site, folder: Path) -> str:
    found = bundle.read(make_bundle(folder, "3.0", reference=REFERENCE))
    with site.database.begin() as connection:
        releases.publish(connection, found, None, now=site.clock(), who=audit.FLEET)
    return found.sha256


def told(site: Site, seq: int, one: DeploymentWindow) -> None:
    """A report as the broker brings it."""
    now = same(site.clock())
    started = datetime.fromtimestamp(now.wall - 60, UTC)
    made = Report("d1", Boot(1, 2, "0" * 16), seq, started, 60.0, True, (one,))
    taken = ingest.take_in(site.database, [Message(topics.of("d1", topics.TELEMETRY), encode(made))], now)
    assert not taken.dropped


def test_the_drift_page_shows_what_devices_see_beside_what_the_bundle_was_judged_on(
    site: Site, tmp_path: Path
) -> None:
    digest = published(site, tmp_path)
    site.devices(["d1"], credential_hash="0" * 64, incarnation=2, nonce="0" * 16)
    with site.database.begin() as connection:
        row = {
            "device": "d1",
            "deployment": "digits",
            "sha256": digest,
            "because": "test",
            "set_at": site.clock(),
        }
        connection.execute(insert(schema.desired), [row])
    ann = site.person("ann")
    assert "beside what it was judged on" not in ann.get("/drift").text
    told(site, 1, window(digest, [400, 100, 0, 0], [50, 0, 0, 50]))
    told(site, 2, window(digest, [400, 100, 0, 0]))
    page = ann.get("/drift").text
    assert "The last day beside what it was judged on" in page
    assert re.search(r"<b>input image</b><span class=.soft.>55(\.0)? ?% of 1,000 values lie elsewhere", page)
    assert "below 0.25: 80.0% of what devices say, 25.0% of the reference" in page
    assert page.index("input image") < page.index("output logits"), "what moved most comes first"


def test_what_devices_tell_of_drift_confidence_and_anomalies_is_on_the_pages_and_in_the_api(
    site: Site, tmp_path: Path
) -> None:
    digest = published(site, tmp_path)
    site.devices(["d1"], credential_hash="0" * 64, incarnation=2, nonce="0" * 16)
    with site.database.begin() as connection:
        row = {"device": "d1", "deployment": "digits", "sha256": digest, "because": "test"}
        connection.execute(insert(schema.desired), [{**row, "set_at": site.clock()}])
    one = msgspec.structs.replace(
        window(digest, [400, 100, 0, 0]),
        confidence={"logits": Histogram(EDGES, [0, 100, 0, 0])},
        drift={"inputs/image": 0.6, "outputs/logits": 0.02},
        anomalies={"wrong-shape": 3},
    )
    told(site, 1, one)
    told(site, 2, msgspec.structs.replace(one, drift={"inputs/image": 0.4}, anomalies={"not-finite": 1}))
    ann = site.person("ann")
    page = ann.get("/drift").text
    assert re.search(r"input image</span>\s*moved \(index 0.40\)", page), "what was said last"
    assert "moved just now at 1 of 1 devices; drift is what lasts" in page
    assert "as it was (index 0.02)" not in page, "it said so before"
    assert re.search(r"Confidence of logits: 37.5 ?% on average over a day; 87.5 ?% when", page)
    assert "wrong-shape 3" in page
    with site.database.read() as connection:
        (view,) = drifting.views(connection, site.clock())
    assert view.said == {"inputs/image": api.Said(1, 1, 0.4)}
    assert view.state == "moved"
    assert view.anomalies == {"not-finite": 1, "wrong-shape": 3}
    assert (view.confidence["logits"].found, view.confidence["logits"].expected) == (0.375, 0.875)


def test_what_devices_say_is_told_of_those_where_it_moved_and_never_mixed_with_the_others() -> None:
    """One of four moved far: the mean, 0.14, would say of all what is true of none."""
    devices = [
        {"inputs/x": 0.5, "outputs/y": 0.1},
        {"inputs/x": 0.02},
        {"inputs/x": 0.02},
        {"inputs/x": 0.02},
    ]
    found = telling.said(devices)
    assert found["inputs/x"] == telling.Said(4, 1, 0.5)
    assert found["outputs/y"] == telling.Said(1, 0, 0.1)
    assert next(iter(found)) == "inputs/x", "what moved at most devices is first"
    assert len(telling.said([{f"inputs/{n:03}": 0.1 for n in range(100)}])) == telling.MOST_LABELS
    assert len(telling.added({}, {f"k{n}": 1 for n in range(100)})) == telling.MOST_KINDS


def test_there_is_one_statement_on_a_bundle_and_it_is_the_gravest() -> None:
    moved, well = {"inputs/x": api.Said(9, 3, 0.5)}, {"inputs/x": api.Said(9, 0, 0.02)}
    view = api.DriftView("digits@1", "p", SHA256, 1200, named=40, said=moved)
    assert (view.state, view.words) == ("drifted", "drifted at 40 of 1,200 devices")
    calm = msgspec.structs.replace(view, named=0)
    assert calm.words == "moved just now at 3 of 1,200 devices; drift is what lasts"
    assert calm.said["inputs/x"].words == "moved at 3 of 9 devices (index 0.50 there)"
    assert msgspec.structs.replace(calm, said=well).words == "as it was"
    assert msgspec.structs.replace(calm, said={}).state == "unknown"
    outputs = msgspec.structs.replace(calm, said={"outputs/y": api.Said(9, 9, 0.5)})
    assert outputs.state == "well", "inputs are what drift is of; the output's own line says that it moved"


def test_what_moved_is_named_at_most_devices_first_and_by_night_what_is_furthest() -> None:
    far = [{"inputs/a": 0.5, "inputs/b": 0.1}, {"inputs/a": 0.4, "inputs/b": 0.3, "outputs/y": 0.9}]
    assert telling.moved(far) == ("inputs/a", "inputs/b", "outputs/y")
    assert telling.moved([{"inputs/a": 0.1, "inputs/b": 0.15, "outputs/y": 0.18}]) == ("inputs/b",)
    assert telling.moved([{}]) == ()


def test_a_bundle_that_an_older_fleet_published_has_its_reference_when_it_is_published_again(
    site: Site, tmp_path: Path
) -> None:
    digest = published(site, tmp_path)
    with site.database.begin() as connection:
        connection.execute(delete(references))
        assert releases.reference_of(connection, digest) is None
    published(site, tmp_path)
    with site.database.read() as connection:
        assert releases.reference_of(connection, digest) == REFERENCE


# --- experiments ---


def begun(site: Site, *, devices: int = 40, difference: float = 0.2) -> None:
    """e1, of whose devices those on B take longer."""
    now = same(site.clock())
    head = {
        "id": 1, "status": "running", "deployment": "digits", "name_a": "digits", "version_a": "1.0", "name_b": "digits",
        "version_b": "2.0", "selector": "all", "share": 0.5, "goal": "latency_mean", "planned": devices, "reason": "",
        "created_at": now.steady, "updated_at": now.steady,
    }  # fmt: skip
    rows = [
        {
            "experiment": 1, "device": f"d{n:02}", "arm": "AB"[n % 2], "target": "a" * 64, "previous": None, "wanted": "a" * 64,
            "is_due": False, "joined_at": now.steady, "windows": 10, "requests": 1000, "errors": 0, "observed": 1000.0,
            "total": 1000 * (2 + 0.01 * (n % 7) + difference * (n % 2)),
        }
        for n in range(devices)
    ]  # fmt: skip
    with site.database.begin() as connection:
        connection.execute(insert(experiments), [head])
        connection.execute(insert(units), rows)


def steps(site: Site, *seconds: float) -> None:
    """What the controller does after so long, each."""
    for one in seconds:
        site.clock.now += one
        with site.database.begin() as connection:
            trials.note(connection, same(site.clock()))


def noted(site: Site) -> list[float]:
    with site.database.read() as connection:
        return [round(point.at - NOW) for point in store.points_of(connection, 1)]


def test_what_is_known_of_a_difference_is_kept_at_most_each_minute_and_when_it_ends(site: Site) -> None:
    begun(site)
    steps(site, 1, 1, 30, 30, 1, 60)
    assert noted(site) == [1, 62, 123]
    site.clock.now += 5
    with site.database.begin() as connection:
        trials.stop(connection, 1, now=same(site.clock()), who=audit.FLEET)
    steps(site, 600)
    assert noted(site) == [1, 62, 123, 128]


def test_too_few_devices_leave_no_point(site: Site) -> None:
    begun(site, devices=10)
    steps(site, 1, 100)
    assert noted(site) == []


def test_an_experiment_of_a_month_leaves_hundreds_of_points_and_not_thousands() -> None:
    last, count = None, 0
    for minute in range(30 * 1440):
        if experiment.is_to_note(0.0, last, 60.0 * minute):
            last, count = 60.0 * minute, count + 1
    assert 200 < count < 400


def test_the_page_of_an_experiment_draws_its_difference_over_time_with_its_band_and_zero(site: Site) -> None:
    begun(site)
    steps(site, 1)
    ann = site.person("ann")
    assert "Over time" not in ann.get("/experiments/e1").text, "one point is no line"
    steps(site, 61, 61)
    page = ann.get("/experiments/e1").text
    assert "B takes longer than A by" in page
    assert page.count('class="band new"') >= 1
    assert page.count('class="zero"') >= 1
    shown = re.search(r"UTC: difference [\d.]+ % \(([\d.-]+) to ([\d.-]+)\)", page)
    assert shown is not None
    assert float(shown[1]) < 100 * (math.e**0.2 - 1) < float(shown[2])


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 50)), min_size=2, max_size=20),
    st.sampled_from(["error_rate", "max metric:sold"]),
)
def test_a_difference_lies_inside_of_its_picture_and_so_does_zero(
    found: list[tuple[float, float]], goal: str
) -> None:
    points = [
        SimpleNamespace(at=60.0 * at, difference=value, low=value - reach, high=value + reach)
        for at, (value, reach) in enumerate(found)
    ]
    [chart] = charts.of_experiment(points, goal)
    for y in re.findall(r'y[12]="(-?[\d.]+)"', chart.wide):
        assert 0 <= float(y) <= 260


# --- a rollout's chart stays as short as a page is ---


@given(
    st.lists(
        st.tuples(st.integers(0, 20_000), st.sampled_from(["canary", "control"])),
        min_size=1,
        max_size=60,
        unique=True,
    ),
    st.integers(10, 150),
)
def test_a_rollout_of_days_is_drawn_by_no_more_moments_and_loses_nothing(
    minutes: list[tuple[int, ArmName]], most: int
) -> None:
    kept = [
        ((0, arm), 60.0, 60.0 * minute, ArmSums(1, 3, 3, 100, 1, 1.0, 100.0, 10_000.0))
        for minute, arm in minutes
    ]
    drawn = history._coarser(kept, most, rules.after)
    assert len({at for _, _, at, _ in drawn}) <= most
    for arm in ("canary", "control"):
        before = [sums.requests for (_, of), _, _, sums in kept if of == arm]
        after = [sums.requests for (_, of), _, _, sums in drawn if of == arm]
        assert sum(before) == sum(after)
    for _, length, at, _ in drawn:
        assert at % length == 0


def test_minutes_that_fit_stay_minutes() -> None:
    kept: list[Any] = [((0, "canary"), 60.0, 60.0 * at, ArmSums(1, 3, 3, 100, 1)) for at in range(50)]
    assert history._coarser(kept, 120, rules.after) == kept
