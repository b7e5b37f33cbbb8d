"""One scene over real processes: a rollout started, watched, paused, approved and rolled back in Chromium, against devices that
speak MQTT to a real service.
"""

import re
import subprocess

import pytest
from browser_support import PASSWORD, chromium
from fleet_support import Service, make_bundle, wait_until
from playwright.sync_api import Page, expect

from fleet import api
from fleet.client import publishing
from fleet.client.rest import Client

pytestmark = pytest.mark.browser


def see(page: Page, words: str) -> None:
    """It comes by itself: nobody loads the page again."""
    found = page.get_by_text(re.compile(words)).first
    for _ in range(180):
        if found.is_visible():
            return
        page.wait_for_timeout(500)
    expect(found).to_be_visible()


def fleet_of(service: Service, client: Client) -> "subprocess.Popen[str]":
    """The process of twelve devices on 1.0, 2.0 published, and somebody who may sign in."""
    for version in ("1.0", "2.0"):
        [checked] = publishing.check(client, [make_bundle(service.folder / version, version)])
        publishing.publish(client, checked, service.state / "publisher", lambda _: None)
    client.add_user(api.NewUser("ann", PASSWORD, "operator"))
    quick = ("--window", "1s", "--fetch", "0s", "--probation", "0s", "--duration", "10m")
    made = service.simulated(12, *quick)
    wait_until(lambda: sum(d.online for d in client.devices()) == 12, "all are there", timeout_s=60)
    client.assign(api.NewAssignment("digits@1.0", "all"))
    wait_until(
        lambda: all(d.deployments["digits"].version == "1.0" for d in client.devices()),
        "all run 1.0",
        timeout_s=60,
    )
    return made


def until_rolled_back(client: Client) -> None:
    wait_until(lambda: client.rollout("r1").status == "rolled_back", "it is rolled back", timeout_s=60)


def test_a_whole_rollout_is_started_watched_paused_approved_and_rolled_back_in_the_page(
    service: Service, request: pytest.FixtureRequest
) -> None:
    client = service.client()
    devices = fleet_of(service, client)
    request.addfinalizer(devices.kill)
    elsewhere: list[str] = []
    with chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(30_000)
        here = f"http://127.0.0.1:{service.http_port}"
        page.on(
            "request",
            lambda request: elsewhere.append(request.url) if not request.url.startswith(here) else None,
        )
        page.goto(f"{here}/rollouts/start")
        page.get_by_label("Name").fill("ann")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        page.locator("main [name=release]").select_option("digits@2.0")
        page.locator("main [name=to]").fill("all")
        page.locator("main [name=stages]").fill("4, 100%")
        page.locator("main [name=soak]").fill("2s")
        page.locator("main [name=gates]").fill("install_failures < 50%")
        page.get_by_text("Pace, approval, time").click()
        page.locator("main [name=approve]").fill("2")
        page.locator("main [name=holdback]").fill("0")
        page.get_by_role("button", name="Show the plan").click()
        expect(page.get_by_text("12 devices move")).to_be_visible()
        assert client.rollouts() == [], "a plan starts nothing"
        page.get_by_role("button", name="Start it: 12 devices").click()
        see(page, "Rollout r1 of digits@2.0 has begun")
        see(page, r"Stage 2 \(all devices, 8 devices\) waits for somebody to approve it")
        page.get_by_role("link", name="Pause").click()
        page.get_by_role("button", name="Pause it").click()
        see(page, "Rollout r1 is paused")
        page.get_by_role("link", name="Resume").click()
        page.get_by_role("button", name="Resume it").click()
        page.get_by_role("link", name="Approve stage 2").click()
        expect(page.get_by_text("8 more devices are told to run digits@2.0")).to_be_visible()
        page.get_by_role("button", name="Let the stage begin").click()
        see(page, "12 ?|8 done")
        page.goto(f"{here}/rollouts/r1/rollback")
        expect(page.get_by_text(re.compile(r"devices go back to digits@1\.0"))).to_be_visible()
        page.get_by_label("Type r1").fill("r1")
        # It has ended before the page that still says "rolling back" can listen.
        page.route("**/api/v1/events*", lambda route: (until_rolled_back(client), route.continue_()))
        page.get_by_role("button", name="Roll it back").click()
        see(page, "rolled back")
    wait_until(
        lambda: all(d.deployments["digits"].version == "1.0" for d in client.devices()),
        "all are back",
        timeout_s=60,
    )
    assert elsewhere == []
    devices.terminate()
    devices.wait(60)
    client.close()
