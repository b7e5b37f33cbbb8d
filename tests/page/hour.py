"""Pages left open under events: what they hold in Chromium after each minute, so that a leak shows.

    python tests/page/hour.py --minutes 60 --csv hour.csv [--seed 1]

A real service, simulated devices that report, and a seeded hand that labels, pauses, resumes, starts and aborts. The overview,
a rollout, the devices and one device stay open, each in a browser context of its own, and are never loaded again. Each
minute the heap is collected and then read (Chromium's own counts, over its DevTools protocol): bytes of JavaScript's heap,
nodes, listeners, documents. A page that keeps what it replaced grows with each event.
"""

import argparse
import csv
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "fleet"))

from fleet_support import Service, make_bundle, wait_until
from playwright.sync_api import CDPSession, Page, sync_playwright

from fleet import api
from fleet.client import publishing
from fleet.client.rest import Client

DEVICES = 30
PASSWORD = "correct horse battery staple"
CHROMIUM = "/usr/bin/chromium"
# What is open, and by which name it is told.
OPEN = {"overview": "/", "rollout": "/rollouts/r1", "devices": "/devices", "device": "/devices/{device}"}


@dataclass(frozen=True)
class Held:
    """What one page holds after its garbage was collected."""

    minute: float
    page: str
    heap_bytes: int
    nodes: int
    listeners: int
    documents: int
    # Times that its live part was asked for since the start: without them nothing was tested.
    asked: int


def leaks(found: Iterable[Held]) -> list[str]:
    """Pages that hold more the longer they are open, of looks in order; empty where memory is flat.

    The first look is left out: what is made once (compiled code, the first live part) is no leak. A heap may grow by a
    quarter after that, and listeners not at all; nodes follow what is shown, twice as many at most.
    """
    by_page: dict[str, list[Held]] = {}
    for one in found:
        by_page.setdefault(one.page, []).append(one)
    said = []
    for page, (_, first, *later) in by_page.items():
        last = later[-1]
        for what, before, after, most in (
            ("heap_bytes", first.heap_bytes, last.heap_bytes, 1.25),
            ("listeners", first.listeners, last.listeners, 1.0),
            ("nodes", first.nodes, last.nodes, 2.0),
        ):
            if after > most * before:
                said.append(f"{page}: {what} went from {before} to {after}")
    return said


@contextmanager
def fleet(folder: Path) -> Iterator[tuple[Client, str]]:
    """A service, devices on 1.0, and a rollout of 2.0 that does not end by itself; its client and its address."""
    service = Service(folder, more=("--tick", "1"))
    service.start()
    client = service.client()
    for version in ("1.0", "2.0"):
        [checked] = publishing.check(client, [make_bundle(folder / version, version)])
        publishing.publish(client, checked, service.state / "publisher", lambda _: None)
    client.add_user(api.NewUser("ann", PASSWORD, "admin"))
    quick = ("--window", "5s", "--fetch", "0s", "--probation", "0s", "--drops", "2", "--duration", "3h")
    devices = service.simulated(DEVICES, *quick, "--label", "site=lab")
    try:
        wait_until(lambda: len(client.devices()) == DEVICES, "all are there", timeout_s=120)
        client.assign(api.NewAssignment("digits@1.0", "all"))
        wait_until(
            lambda: sum(d.deployments["digits"].version == "1.0" for d in client.devices()) >= DEVICES - 2,
            "they run 1.0",
            timeout_s=120,
        )
        client.start(
            api.NewRollout(
                release="digits@2.0", to="all", gates=("error_rate < 20%",), soak="6h", stages="10,100%",
                holdback="10", finish_by="2d",
            )
        )  # fmt: skip
        yield client, f"http://127.0.0.1:{service.http_port}"
    finally:
        devices.kill()
        devices.wait()
        client.close()
        service.stop()


def disturb(client: Client, draw: random.Random, names: list[str]) -> None:
    """One thing that an operator does elsewhere."""
    match draw.choice(("label", "label", "pause", "user")):
        case "label":
            client.label(draw.choice(names), api.NewLabels({"shelf": str(draw.randrange(100))}))
        case "pause":
            status = client.rollout("r1").status
            client.turn("r1", "pause" if status == "running" else "resume")
        case "user":
            client.add_user(api.NewUser(f"u{draw.getrandbits(60)}", PASSWORD, "viewer"))


class Watched:
    """A page that stays open, and the session that reads what it holds."""

    def __init__(self, name: str, page: Page) -> None:
        self.name = name
        self.page = page
        self.asked = 0
        self.session: CDPSession = page.context.new_cdp_session(page)
        self.session.send("Performance.enable")
        page.on("request", self._count)

    def _count(self, request: object) -> None:
        self.asked += "x-fragment" in getattr(request, "headers", {})

    def held(self, minute: float) -> Held:
        self.session.send("HeapProfiler.collectGarbage")
        told = {
            one["name"]: int(one["value"]) for one in self.session.send("Performance.getMetrics")["metrics"]
        }
        counts = (told[key] for key in ("JSHeapUsedSize", "Nodes", "JSEventListeners", "Documents"))
        return Held(round(minute, 2), self.name, *counts, self.asked)


def sign_in(page: Page, url: str) -> None:
    page.goto(f"{url}/login")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{url}/")


def left_open(
    client: Client, url: str, *, minutes: float, seed: int, every_s: float = 60.0, pause_s: float = 4.0
) -> Iterator[Held]:
    """What each page holds, at each look, as it comes; `pause_s` is the mean time between two acts."""
    draw = random.Random(seed)
    names = sorted(one.device for one in client.devices())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        watched = []
        for name, path in OPEN.items():
            page = browser.new_context().new_page()
            sign_in(page, url)
            page.goto(url + path.format(device=names[0]))
            watched.append(Watched(name, page))
        began = time.monotonic()
        next_look = 0.0
        while (passed := time.monotonic() - began) < minutes * 60:
            if passed >= next_look:
                next_look += every_s
                yield from (one.held(passed / 60) for one in watched)
            disturb(client, draw, names)
            watched[0].page.wait_for_timeout(draw.expovariate(1 / pause_s) * 1000)
        yield from (one.held(minutes) for one in watched)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        fleet(Path(folder)) as (client, url),
        wanted.csv.open("w") as out,
    ):
        rows = csv.writer(out)
        rows.writerow(Held.__annotations__)
        for held in left_open(client, url, minutes=wanted.minutes, seed=wanted.seed):
            rows.writerow(held.__dict__.values())
            out.flush()


if __name__ == "__main__":
    main()
