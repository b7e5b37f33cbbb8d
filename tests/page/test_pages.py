"""What the pages show and do, without a browser: rights, forms, filters, and acts that say first what they will do."""

import re
from typing import Any

import msgspec
import pytest
from page_support import Site, form_of, post, token_of
from sqlalchemy import update

from edgekit.wire import commands as wire
from edgekit.wire.messages import Boot, Moments
from edgekit.wire.states import FleetState
from fleet.api import NewCollection
from fleet.rules import selectors
from fleet.rules.access import RULES, Role, Rule
from fleet.rules.alerts import Alert
from fleet.rules.rollout import Status
from fleet.rules.shadowing import Sums
from fleet.server import collecting, schema_shadows
from fleet.server.store import alerts, audit, commands, devices, glance, groups, rollouts, shadows
from fleet.server.store.audit import Who
from fleet.server.store.glance import Browse

FORMS = sorted(path for (method, path), rule in RULES.items() if isinstance(rule, Rule) and rule.is_form)
PAGES = ["/", "/rollouts", "/rollouts/start", "/devices", "/releases", "/experiments", "/audit", "/settings", "/enrol", "/freeze", "/search"]  # fmt: skip


@pytest.fixture(scope="module")
def ann(empty: Site) -> Any:
    """An admin's browser, at the empty fleet."""
    return empty.person("ann")


def filled(path: str) -> str:
    return re.sub(r"\{verb\}", "pause", re.sub(r"\{(?!verb)\w+\}", "x", path))


@pytest.mark.parametrize("path", FORMS)
def test_a_form_without_the_token_of_a_page_does_nothing(empty: Site, ann: Any, path: str) -> None:
    with empty.database.read() as connection:
        before = len(list(audit.entries(connection)))
    for shown in ({}, {"csrf": ""}, {"csrf": "0" * 64}):
        answer = ann.post(filled(path), data={"typed": "x", **shown})
        assert (answer.status_code, "did not come from a page" in answer.text) == (403, True)
    with empty.database.read() as connection:
        assert len(list(audit.entries(connection))) == before


@pytest.mark.parametrize("path", PAGES)
def test_an_empty_fleet_has_pages_that_say_what_fills_them(ann: Any, path: str) -> None:
    answer = ann.get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    if path in ("/", "/devices"):
        assert "edgekit fleet enroll" in answer.text
    assert not re.search(r"<[^>]+ (style|on\w+)=", answer.text), "the policy would not let it run"


def test_who_is_not_signed_in_comes_back_to_where_they_were_going(site: Site) -> None:
    nobody = site.client()
    nobody.headers["accept"] = "text/html"
    answer = nobody.get("/devices?where=site%3Dlab")
    assert (answer.status_code, answer.headers["location"]) == (
        303,
        "/login?next=%2Fdevices%3Fwhere%3Dsite%253Dlab",
    )
    assert site.client().get("/devices").json()["error"]["code"]


def test_a_viewer_reads_everything_and_is_told_why_the_buttons_are_not_for_them(site: Site) -> None:
    site.releases()
    site.devices(["d1", "d2"])
    head = site.rollout({"d1": FleetState.SUCCEEDED, "d2": FleetState.PENDING})
    vic = site.person("vic", Role.VIEWER)
    page = vic.get(f"/rollouts/{head.label}").text
    assert "This needs the role operator; yours is viewer." in page
    assert f'href="/rollouts/{head.label}/pause"' not in page
    for path in ("/devices", "/devices/d1", "/releases/digits/2.0", "/settings", "/"):
        assert vic.get(path).status_code == 200
    answer = vic.get(f"/rollouts/{head.label}/pause")
    assert (answer.status_code, "needs the role operator" in answer.text) == (403, True)
    assert post(vic, f"/rollouts/{head.label}/pause").status_code == 403
    assert vic.get("/audit").status_code == 403
    assert 'href="/audit"' not in page


def test_whoever_reaches_one_site_sees_and_touches_only_that(site: Site) -> None:
    site.releases()
    site.devices(["lab-1"], labels='{"site":"lab"}')
    site.devices(["roof-1"], labels='{"site":"roof"}')
    lars = site.person("lars", Role.OPERATOR, "site=lab")
    page = lars.get("/devices").text
    assert ("lab-1" in page, "roof-1" in page) == (True, False)
    assert "1 device, 1 online" in lars.get("/").text
    assert lars.get("/devices/roof-1").status_code == 404
    inside = site.rollout({"lab-1": FleetState.PENDING}, status=Status.COMPLETED)
    across = site.rollout({"lab-1": FleetState.PENDING, "roof-1": FleetState.PENDING})
    assert lars.get(f"/rollouts/{inside.label}").status_code == 200
    assert lars.get(f"/rollouts/{across.label}").status_code == 404
    assert across.label not in re.findall(r"/rollouts/(r\d+)", lars.get("/rollouts").text)
    assert post(lars, f"/rollouts/{across.label}/abort", typed=across.label).status_code == 404
    post(lars, "/relabel", device=["roof-1"], labels="site=lab", back="/devices")
    with site.database.read() as connection:
        assert devices.labels_of(devices.get(connection, "roof-1"))["site"] == "roof"


def test_what_devices_and_people_write_is_shown_and_never_run(site: Site) -> None:
    bad = "<script>alert(1)</script>"
    site.releases()
    site.devices(["d1"], agent_version=bad, labels='{"site":"' + bad + '"}')
    head = site.rollout({"d1": FleetState.FAILED}, reason=bad, status=Status.PAUSED)
    with site.database.begin() as connection:
        audit.append(
            connection, site.clock(), Who(f"user:{bad}"), bad, bad, bad, before={bad: 1}, after={bad: bad}
        )
    ann = site.person("ann")
    for path in ("/", "/devices", "/devices/d1", f"/rollouts/{head.label}", "/audit", f"/search?q={bad}", f"/devices?where={bad}", f"/nowhere/{bad}"):  # fmt: skip
        answer = ann.get(path)
        assert bad not in answer.text, path


# -- devices -----------------------------------------------------------------------------------------------------------


def test_filters_are_part_of_the_address_and_each_can_be_taken_away(site: Site) -> None:
    site.devices(["lab-1", "lab-2"], labels='{"site":"lab"}')
    site.devices(["roof-1"], labels='{"site":"roof"}', is_online=False)
    ann = site.person("ann")
    page = ann.get(
        "/devices", params={"where": "site=lab or site=roof", "state": "offline", "q": "ROOF"}
    ).text
    assert re.findall(r'/devices/([\w-]+)"', page) == ["roof-1"]
    assert 'href="/devices?where=site%3Dlab+or+site%3Droof&amp;q=ROOF"' in page
    answer = ann.get("/devices", params={"where": "site lab"})
    assert answer.status_code == 400
    assert "expected" in answer.text
    assert "^" in answer.text


@pytest.mark.parametrize(
    "sort", ["device", "-device", "last_seen", "-last_seen", "profile", "agent", "-state", "site"]
)
def test_pages_show_each_device_once_whatever_they_are_sorted_by(site: Site, sort: str) -> None:
    for number in range(120):
        site.devices(
            [f"d{number:03}"],
            last_seen_at=None if number % 7 == 0 else float(number % 5),
            profile=f"p{number % 3}",
        )
    seen: list[str] = []
    with site.database.read() as connection:
        after = ""
        while True:
            rows, after = glance.browse(connection, Browse(sort=sort, after=after), 50)
            seen += [row.id for row in rows]
            if not after:
                break
    assert sorted(seen) == [f"d{number:03}" for number in range(120)]


def test_a_selector_means_to_the_database_what_it_means_to_the_rules(site: Site) -> None:
    given = {"a": '{"site":"lab"}', "b": '{"site":"roof","x/y.z-1":"2"}', "c": "{}"}
    for name, labels in given.items():
        site.devices([name], labels=labels)
    with site.database.read() as connection:
        everyone = devices.everyone(connection)
        for text in ("site=lab", "site!=lab", "not site in (lab, roof)", "x/y.z-1=2", "device=c or profile=none", "all", "site=lab and not all"):  # fmt: skip
            rows, _ = glance.browse(connection, Browse(where=text), 50)
            wanted = [row.id for row in everyone if selectors.parse(text).matches(devices.labels_of(row))]
            assert [row.id for row in rows] == wanted, text


def test_labels_of_many_devices_are_changed_at_once(site: Site) -> None:
    site.devices(["d1", "d2", "d3"], labels='{"site":"lab","old":"1"}')
    ann = site.person("ann")
    answer = post(
        ann, "/relabel", device=["d1", "d3"], labels="site=roof, room=2", remove="old", back="/devices?q=d"
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/devices?q=d")
    assert "Labels of 2 devices were changed." in ann.get("/devices").text
    with site.database.read() as connection:
        found = {row.id: devices.labels_of(row) for row in devices.everyone(connection)}
    assert found["d1"] == {"site": "roof", "room": "2", "device": "d1", "profile": "x86-64-v3"}
    assert found["d2"]["site"] == "lab"
    assert (
        "Not done: tick some devices"
        in ann.get(post(ann, "/relabel", back="//elsewhere").headers["location"]).text
    )


def test_a_device_has_what_it_should_run_and_what_was_done_to_it(site: Site) -> None:
    site.devices(["d1"])
    with site.database.begin() as connection:
        groups.relabel(connection, "d1", {"site": "lab"}, (), now=site.clock(), who=Who("user:bob"))
    page = site.person("ann").get("/devices/d1").text
    assert "nothing is ordered" in page
    assert "bob changed the labels of" in page
    assert "edgekit fleet device explain d1" in page


def test_a_device_shows_what_it_was_asked_and_what_came_of_it(site: Site) -> None:
    site.devices(["d1"])
    ann = site.person("ann")
    assert post(ann, "/devices/d1/self-test").status_code == 303
    assert "run the self-test" in ann.get("/devices/d1").text
    with site.database.begin() as connection:
        (asked,) = commands.of_device(connection, "d1")
        found = wire.Tested("a" * 64, passed=True, deployment="digits", agreement=0.984, latency_p50_ms=1.25)
        result = wire.Result(
            "d1", Boot(1, 1, "0" * 16), 1, asked.id, wire.CommandState.DONE, payload=wire.SelfTested((found,))
        )
        commands.record(connection, [("d1", result)], site.clock())
    told = "digits: passed, 98.4% of the answers as the source gives them, median 1.25 ms"
    assert told in ann.get("/devices/d1").text
    vera = site.person("vera", Role.VIEWER)
    assert post(vera, "/devices/d1/restart").status_code == 403


def test_a_device_shows_what_it_is_asked_to_bring_for_retraining(site: Site) -> None:
    site.devices(["d1", "d2"])
    wanted = NewCollection("digits", "device=d1", "1h", low_confidence=0.5)
    with site.database.begin() as connection:
        collecting.begin(connection, wanted, wanted.to, now=site.clock(), who=Who("user:ann"))
    ann = site.person("ann")
    assert "edgekit fleet samples download s1 --out samples" in ann.get("/devices/d1").text
    assert "Samples for retraining" not in ann.get("/devices/d2").text


def test_a_device_shows_what_it_compares_and_how_far_that_agrees(site: Site) -> None:
    site.releases()
    site.devices(["d1", "d2"])
    wanted = {
        "deployment": "digits", "name": "digits", "version": "2.0", "selector": "all", "share": 0.1,
        "created_at": site.clock(), "created_by": "user:ann",
    }  # fmt: skip
    with site.database.begin() as connection:
        number = shadows.add(connection, wanted, {"d1": "b" * 64})
        sums = Sums({"logits": Moments(200, 197.0)})
        row = schema_shadows.shadow_devices
        values = {"compared": 200, "dropped": 3, "sums": msgspec.json.encode(sums).decode()}
        connection.execute(update(row).where(row.c.shadow == number).values(**values))
    ann = site.person("ann")
    page = ann.get("/devices/d1").text
    assert "edgekit fleet shadow status h1" in page
    assert "98.5 %" in page
    assert "What it compares" not in ann.get("/devices/d2").text


def test_deleting_a_device_asks_for_its_name_first(site: Site) -> None:
    site.devices(["d1"])
    ann = site.person("ann")
    assert "This cannot be taken back." in ann.get("/devices/d1/delete").text
    answer = post(ann, "/devices/d1/delete", typed="d2")
    assert (answer.status_code, "nothing was done" in answer.text) == (400, True)
    assert post(ann, "/devices/d1/delete", typed="d1", reason="sold").status_code == 303
    assert ann.get("/devices/d1").status_code == 404


# -- rollouts ----------------------------------------------------------------------------------------------------------


def under_way(site: Site, **given: Any) -> str:
    site.releases()
    names = [f"d{number}" for number in range(8)]
    site.devices(names)
    states = [FleetState.SUCCEEDED] * 3 + [FleetState.FAILED] + [FleetState.PENDING] * 4
    return site.rollout(dict(zip(names, states, strict=True)), **given).label


def test_a_rollout_shows_its_stages_its_gates_and_who_failed_first(site: Site) -> None:
    label = under_way(site)
    page = site.person("ann").get(f"/rollouts/{label}").text
    assert re.findall(r'class="name">(\d · [^<]+)<', page) == ["1 · 50 %", "2 · all devices"]
    assert "3 done" in page
    assert "1 failed" in page
    assert re.findall(r'/devices/(d\d)"', page)[0] == "d3"
    done = site.person("bob").get(f"/rollouts/{label}?only=done").text
    assert re.findall(r'/devices/(d\d)"', done) == ["d0", "d1", "d2"]


@pytest.mark.parametrize(
    ("verb", "says"),
    [
        ("pause", "No device is moving now."),
        ("rollback", "4 devices go back to digits@1.0."),
        ("abort", "The 3 devices that run it already stay on it."),
        ("retry", "One device that failed is told to try again; its failure counts no more"),
    ],
)  # fmt: skip
def test_before_anything_happens_the_page_says_what_will(site: Site, verb: str, says: str) -> None:
    label = under_way(site)
    page = site.person("ann").get(f"/rollouts/{label}/{verb}").text
    assert says in page
    assert f"edgekit fleet rollout {verb} {label}" in page
    with site.database.read() as connection:
        assert glance.head(connection, rollouts.parse_id(label)).status is Status.RUNNING  # type: ignore[union-attr]


def test_pausing_and_resuming_by_the_page_is_in_the_audit_log_as_that_person(site: Site) -> None:
    label = under_way(site)
    ann = site.person("ann", Role.OPERATOR)
    answer = post(ann, f"/rollouts/{label}/pause")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/rollouts/{label}")
    page = ann.get(f"/rollouts/{label}").text
    assert f"Rollout {label} is paused." in page
    assert f"/rollouts/{label}/resume" in page
    assert f"Rollout {label} is paused." not in ann.get(f"/rollouts/{label}").text, "it is told once"
    assert "One thing needs you." in ann.get("/").text
    with site.database.read() as connection:
        [entry] = audit.newest(connection, 1)
    assert (entry.actor, entry.action) == ("user:ann", "rollout.pause")
    assert post(ann, f"/rollouts/{label}/resume").status_code == 303


def test_of_two_operators_the_second_is_told_that_it_was_too_late(site: Site) -> None:
    label = under_way(site, awaits=1)
    ann, bob = site.person("ann"), site.person("bob")
    assert "4 more devices are told to run" in bob.get(f"/rollouts/{label}/approve").text
    seen = form_of(bob, f"/rollouts/{label}/approve")
    assert post(ann, f"/rollouts/{label}/abort", typed=label).status_code == 303
    answer = bob.post(f"/rollouts/{label}/approve", data=seen)
    assert answer.status_code in (409, 412)
    assert re.search("cannot approve now|has changed since you looked", answer.text)


def test_what_cannot_be_resumed_asks_for_the_rollouts_name(site: Site) -> None:
    label = under_way(site)
    ann = site.person("ann")
    assert post(ann, f"/rollouts/{label}/rollback").status_code == 400
    assert post(ann, f"/rollouts/{label}/rollback", typed="r99").status_code == 400
    assert post(ann, f"/rollouts/{label}/rollback", typed=label).status_code == 303
    with site.database.read() as connection:
        assert glance.head(connection, 1).status in (Status.ROLLING_BACK, Status.ROLLED_BACK)  # type: ignore[union-attr]


def test_a_mistake_in_a_new_rollout_is_shown_and_keeps_what_was_written(site: Site) -> None:
    site.releases()
    site.devices(["d1", "d2"])
    ann = site.person("ann")
    assert "<option selected>digits@2.0" in ann.get("/rollouts/start?release=digits%402.0").text
    for act in ("plan", "start"):
        wrong = post(ann, "/rollouts/start", release="digits@2.0", to="site lab", soak="7m", do=act)
        assert wrong.status_code == 400
        assert "selector: expected" in wrong.text
        assert 'value="7m"' in wrong.text
    with site.database.read() as connection:
        assert glance.heads(connection) == []


def test_a_live_part_is_asked_for_alone(site: Site) -> None:
    label = under_way(site)
    ann = site.person("ann")
    whole, part = (
        ann.get(f"/rollouts/{label}").text,
        ann.get(f"/rollouts/{label}", headers={"X-Fragment": "live"}).text,
    )
    assert part.lstrip().startswith('<div id="live-rollout"')
    assert "<html" not in part
    # Seconds may have passed between the two.
    same = [re.sub(r"<time[^>]*>[^<]*</time>", "", text) for text in (part.strip(), whole)]
    assert same[0] in same[1]


# -- much of everything ------------------------------------------------------------------------------------------------


def test_no_page_reads_all_devices_or_all_members_of_a_rollout(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.releases()
    names = [f"d{number:04}" for number in range(600)]
    site.devices(names, labels='{"site":"lab"}')
    label = site.rollout(dict.fromkeys(names, FleetState.SUCCEEDED)).label
    people = [site.person("ann"), site.person("lars", Role.OPERATOR, "site=lab")]
    everything = (
        (devices, "everyone"), (rollouts, "get"), (rollouts, "everything"), (rollouts, "active_whole"), (rollouts, "load"),
    )  # fmt: skip
    for whole in everything:
        monkeypatch.setattr(*whole, lambda *_, **__: pytest.fail("a page reads everything"))
    for person in people:
        for path in (
            "/", "/rollouts", f"/rollouts/{label}", f"/rollouts/{label}/rollback", "/devices", "/search?q=d00",
            "/devices?where=site%3Dlab&sort=-last_seen", "/devices/d0001", "/releases",
        ):  # fmt: skip
            answer = person.get(path)
            assert answer.status_code == 200, path
            assert len(answer.content) < 120_000, path


# -- settings ----------------------------------------------------------------------------------------------------------


def test_a_tokens_secret_is_shown_once_and_a_password_never(site: Site) -> None:
    ann = site.person("ann")
    made = post(ann, "/settings/tokens", name="ci", role="publisher")
    [secret] = re.findall(r"<code>(ekt_[^<]+)</code>", made.text)
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    assert site.client(secret).get("/api/v1/whoami").json()["role"] == "publisher"
    assert secret not in ann.get("/settings").text
    assert post(ann, "/settings/users", name="eve", password="short", role="viewer").status_code == 400
    answer = post(ann, "/settings/users", name="eve", password="a long enough one", role="viewer")
    assert answer.status_code == 303
    assert "a long enough one" not in ann.get("/settings").text
    assert post(ann, "/settings/tokens/ci/revoke", typed="ci").status_code == 303
    assert site.client(secret).get("/api/v1/whoami").status_code == 401


def test_an_enrolment_file_is_downloaded_and_not_kept(site: Site) -> None:
    ann = site.person("ann")
    answer = post(ann, "/enrol", device="roof-1", deployments="digits", labels="site=lab")
    assert answer.headers["content-disposition"] == 'attachment; filename="roof-1.json"'
    assert answer.headers["cache-control"] == "no-store"
    assert (answer.status_code, answer.json()["labels"]) == (201, {"site": "lab"})
    assert answer.json()["token"] not in ann.get("/enrol").text
    wrong = post(ann, "/enrol", count="many", deployments="digits")
    assert (wrong.status_code, "is no whole number" in wrong.text) == (400, True)


def test_the_theme_is_this_browsers_own(site: Site) -> None:
    ann = site.person("ann")
    assert '<html lang="en">' in ann.get("/").text
    answer = post(ann, "/theme", theme="dark", back="//elsewhere.example")
    assert (answer.headers["location"], answer.status_code) == ("/", 303)
    assert '<html lang="en" data-theme="dark">' in ann.get("/").text
    assert token_of(ann.get("/").text)


def test_the_devices_of_a_rollout_are_paged_each_once_those_that_failed_first(site: Site) -> None:
    site.releases()
    states = [
        FleetState.PENDING,
        FleetState.SUCCEEDED,
        FleetState.FAILED,
        FleetState.TIMED_OUT,
        FleetState.FETCHING,
    ]
    names = [f"d{number:03}" for number in range(105)]
    site.devices(names)
    label = site.rollout({name: states[n % 5] for n, name in enumerate(names)}).label
    ann, to, seen = site.person("ann"), f"/rollouts/{label}", list[str]()
    while to:
        page = ann.get(to).text
        seen += re.findall(r'/devices/(d\d+)"', page)
        following = re.findall(r'href="([^"#]+)#h-members">Next<', page)
        to = following[0].replace("&amp;", "&") if following else ""
    assert sorted(seen) == names
    assert all(int(name[1:]) % 5 in (2, 3) for name in seen[:42])
    assert all(int(name[1:]) % 5 == 1 for name in seen[-21:])


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        ("abort", "It is rolled back"),
        ("rollback", "It is rolled back"),
        ("approve", "It waits for no approval now"),
        ("retry", "It is rolled back"),
    ],
)
def test_what_can_no_longer_be_done_is_said_and_has_no_button(site: Site, verb: str, told: str) -> None:
    site.releases()
    site.devices(["d1"])
    site.rollout({"d1": FleetState.ROLLED_BACK}, status=Status.ROLLED_BACK)
    page = site.person("ann").get(f"/rollouts/r1/{verb}").text
    assert told in page
    assert f'action="/rollouts/r1/{verb}"' not in page


def test_a_rollout_that_an_alert_tells_of_is_one_thing_and_has_its_way_out(site: Site) -> None:
    site.releases()
    site.devices(["d1"])
    site.rollout({"d1": FleetState.FAILED}, status=Status.PAUSED, reason="1 of 1 devices failed to install")
    ann = site.person("ann")
    assert "One thing needs you." in ann.get("/").text
    with site.database.begin() as connection:
        alert = Alert("rollout-stopped", "r1", "r1 was paused", site.clock(), 1.0, 1.0, opened_at=1.0)
        alerts.save(connection, [msgspec.structs.replace(alert, severity="critical")])
    page = ann.get("/").text
    assert "One thing needs you." in page
    assert re.search(r"r1 was paused.*href=./rollouts/r1.>Decide", page, re.DOTALL)
    assert "edgekit fleet rollout status r1" in page
