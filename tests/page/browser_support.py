"""Chromium, and the page served to it from inside the test, with events that the test says."""

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvicorn
from page_support import PASSWORD, Site
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from starlette.responses import Response, StreamingResponse

from fleet.rules import access
from fleet.rules.access import Role
from fleet.server.web import frame

CHROMIUM = Path("/usr/bin/chromium")
EVENTS = "/api/v1/events-of-a-test"


@contextmanager
def chromium() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM))
        yield browser
        browser.close()


@dataclass
class Events:
    """Server-sent events as the service sends them; `is_up` False refuses and ends connections."""

    listeners: list[queue.SimpleQueue[bytes | None]] = field(default_factory=list)
    is_up: bool = True

    def stream(self) -> Response:
        if not self.is_up:
            return Response(status_code=503)
        mine: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.listeners.append(mine)
        mine.put(b": hello\n\n")
        return StreamingResponse(iter(mine.get, None), media_type="text/event-stream")

    def say(self, kind: str, *ids: str) -> None:
        data = msgspec.json.encode({"kind": kind, "ids": ids})
        for one in self.listeners:
            one.put(b"event: changed\ndata: " + data + b"\n\n")

    def drop(self) -> None:
        self.is_up = False
        for one in self.listeners:
            one.put(None)
        self.listeners.clear()


@dataclass
class Served:
    """A site at an address of its own."""

    site: Site
    url: str
    events: Events

    def visit(self, browser: Browser, name: str = "ann", role: Role = Role.ADMIN, **more: Any) -> Page:
        """A new browser of a person who has signed in by the form."""
        client = self.site.person(name, role)
        secret = client.cookies["edgekit"]
        context: BrowserContext = browser.new_context(**more)
        context.add_cookies([{"name": "edgekit", "value": secret, "url": self.url}])
        page = context.new_page()
        page.set_default_timeout(20_000)
        return page

    def open(self, page: Page, path: str) -> None:
        """Go there, and wait until it listens."""
        before = len(self.events.listeners)
        page.goto(self.url + path)
        deadline = time.monotonic() + 30
        while len(self.events.listeners) == before:
            assert time.monotonic() < deadline, "the page does not listen to events"
            page.wait_for_timeout(20)


@contextmanager
def served(site: Site, patch: pytest.MonkeyPatch) -> Iterator[Served]:
    events = Events()
    patch.setattr(frame, "EVENTS", EVENTS)
    patch.setitem(access.RULES, ("GET", EVENTS), access.RULES["GET", "/"])  # type: ignore[arg-type]
    site.app.get(EVENTS)(events.stream)
    config = uvicorn.Config(
        site.app, port=0, log_level="warning", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Served(site, f"http://127.0.0.1:{port}", events)
    events.drop()
    server.should_exit = True
    thread.join(10)


__all__ = ["CHROMIUM", "PASSWORD", "Events", "Served", "chromium", "served"]
