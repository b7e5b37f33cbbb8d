"""More scenes over real processes, by clicks in Chromium: a rollout over real agents is aborted; whom alerts are told."""

import importlib.util
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from alert_support import receiver
from browser_support import PASSWORD, chromium
from fleet_support import Service, free_port, make_bundle, wait_until
from playwright.sync_api import Page, expect

from fleet import api
from fleet.client import publishing
from fleet.client.rest import Client

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SECRET = "a-secret-of-the-receiver-0123456789"


@pytest.fixture
def page(service: Service) -> Iterator[Page]:
    """Of somebody who signed in, and who is told at once what goes elsewhere."""
    client = service.client()
    client.add_user(api.NewUser("ann", PASSWORD, "admin"))
    client.close()
    here = f"http://127.0.0.1:{service.http_port}"
    elsewhere: list[str] = []
    with chromium() as browser:
        made = browser.new_page()
        made.set_default_timeout(60_000)
        made.on("request", lambda one: None if one.url.startswith(here) else elsewhere.append(one.url))
        made.goto(f"{here}/login")
        made.get_by_label("Name").fill("ann")
        made.get_by_label("Password").fill(PASSWORD)
        made.get_by_role("button", name="Sign in").click()
        made.wait_for_url(f"{here}/")
        yield made
    assert elsewhere == []


# --- a rollout over real agents is aborted ---


def real_bundles() -> Callable[..., Any]:
    """The maker of small bundles that engines load, of the agent's tests."""
    path = Path(__file__).parent.parent / "device_agent" / "conftest.py"
    spec = importlib.util.spec_from_file_location("bundles_of_the_agents_tests", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look themselves up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    build: Callable[..., Any] = module.build
    return build


def publish(service: Service, client: Client, path: Path) -> None:
    [checked] = publishing.check(client, [path])
    publishing.publish(client, checked, service.state / "publisher", lambda _: None)


class Agent:
    """`edgekit agent run` as a process."""

    def __init__(self, client: Client, folder: Path, name: str) -> None:
        file = folder / f"{name}.json"
        file.write_bytes(
            msgspec.json.encode(client.enroll(api.NewDevice(name, ("digits",), {"site": "lab"})))
        )
        self.port = free_port()
        words = ["--enrolment", str(file), "--state", str(folder / name), "--http", f"127.0.0.1:{self.port}"]
        with (folder / f"{name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "edgekit",
                    "agent",
                    "run",
                    *words,
                    "--window",
                    "1",
                    "--profile",
                    "x86-64-v3",
                ],
                stdout=log,
                stderr=log,
            )

    def serves(self) -> str:
        """The version that answers."""
        address = f"http://127.0.0.1:{self.port}/v2/models/digits"
        with urllib.request.urlopen(address, timeout=30) as answer:
            return str(json.load(answer)["versions"][0])

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()


def versions(client: Client) -> list[str]:
    return sorted(device.deployments["digits"].version or "" for device in client.devices())


@pytest.mark.proof
def test_a_rollout_over_real_agents_is_aborted_by_a_click_and_stays_where_it_is(
    service: Service, page: Page, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    client = service.client()
    build = real_bundles()
    for version in ("1.0.0", "2.0.0"):
        folder = tmp_path / version
        folder.mkdir()
        publish(service, client, build(folder, version=version, sturdy=True).path)
    agents = [Agent(client, tmp_path, f"board-{number}") for number in range(3)]
    for agent in agents:
        request.addfinalizer(agent.stop)
    client.assign(api.NewAssignment("digits@1.0.0", "all"))
    wait_until(lambda: versions(client) == ["1.0.0"] * 3, "real agents serve 1.0.0", timeout_s=120)
    client.start(
        api.NewRollout(
            release="digits@2.0.0",
            to="all",
            gates=("install_failures < 50%",),
            soak="1h",
            stages="1,100%",
            holdback="0",
        )
    )
    page.goto(f"http://127.0.0.1:{service.http_port}/rollouts/r1")
    expect(page.locator(".track").get_by_text("1 done").last).to_be_visible(timeout=120_000)
    page.get_by_role("link", name="Abort").click()
    expect(page.get_by_text("The one device that runs it already stays on it.")).to_be_visible()
    page.get_by_role("button", name="Abort it").click()
    assert client.rollout("r1").status == "running", "nothing is done before its name is typed"
    page.get_by_label("Type r1").fill("r1")
    page.get_by_role("button", name="Abort it").click()
    expect(page.get_by_text("Rollout r1 is aborted.")).to_be_visible()
    assert client.rollout("r1").status == "aborted"
    assert sorted(agent.serves() for agent in agents) == ["1.0.0", "1.0.0", "2.0.0"]
    assert versions(client) == ["1.0.0", "1.0.0", "2.0.0"]
    client.close()


# --- alerts ---


@pytest.mark.proof
def test_whom_alerts_are_told_is_added_tried_and_removed_and_an_alert_is_acknowledged_by_clicks(
    service: Service, page: Page, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    here = f"http://127.0.0.1:{service.http_port}"
    client = service.client()
    for version in ("1.0", "2.0"):
        publish(service, client, make_bundle(tmp_path / version, version))
    with receiver() as hook:
        page.goto(f"{here}/settings")
        targets = page.locator("section", has=page.get_by_role("heading", name="Who is told of alerts"))
        expect(targets.get_by_text("Nobody yet")).to_be_visible()
        targets.get_by_text("Add a target").click()
        targets.get_by_label("Name").fill("pager")
        targets.get_by_label("Webhook: its address").fill(hook.url)
        targets.get_by_label("Webhook: the secret that signs").fill(SECRET)
        targets.get_by_role("button", name="Add", exact=True).click()
        expect(targets.get_by_role("cell", name="pager", exact=True)).to_be_visible()
        assert "s3cret-path" not in page.content(), "the address may be a secret"
        assert SECRET not in page.content()
        hook.first = [500]
        targets.get_by_role("button", name="Send a test to pager").click()
        expect(page.get_by_text("pager has not got it: it answered 500")).to_be_visible()
        targets.get_by_role("button", name="Send a test to pager").click()
        expect(page.get_by_text("pager has it: it answered 204")).to_be_visible()
        assert hook.taken[-1].is_signed(SECRET)

        devices = service.simulated(
            6,
            "--window",
            "1s",
            "--fetch",
            "0s",
            "--probation",
            "0s",
            "--duration",
            "10m",
            "--fault",
            "2.0:install=100%",
        )
        request.addfinalizer(devices.kill)
        wait_until(lambda: sum(d.online for d in client.devices()) == 6, "all are there", timeout_s=60)
        client.assign(api.NewAssignment("digits@1.0", "all"))
        wait_until(
            lambda: all(d.deployments["digits"].version == "1.0" for d in client.devices()),
            "all run 1.0",
            timeout_s=60,
        )
        page.goto(here)
        client.start(
            api.NewRollout(release="digits@2.0", to="all", gates=("install_failures < 10%",), soak="1s")
        )
        # It comes by itself.
        alert = page.get_by_role("listitem").filter(has_text="r1 (digits@2.0 to all)")
        expect(alert.first).to_be_visible(timeout=120_000)
        alert.get_by_role("button", name="I have seen it").first.click()
        expect(page.get_by_text("The others see that you have seen it.")).to_be_visible()
        expect(page.get_by_text("ann has seen it.").first).to_be_visible()
        [seen] = [one for one in client.alerts() if one.kind == "rollout-stopped"]
        assert seen.acknowledged_by == "user:ann"
        wait_until(lambda: "rollout-stopped" in hook.kinds(), "the receiver is told", timeout_s=60)

        page.goto(f"{here}/settings")
        targets.get_by_role("link", name="Remove pager").click()
        page.get_by_role("button", name="Remove").click()
        expect(targets.get_by_text("Nobody yet")).to_be_visible()
        assert client.targets() == []
    client.close()
