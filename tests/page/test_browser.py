"""The page in Chromium: live parts, a lost connection, keys, roles and contrast by axe, nothing from elsewhere."""

import re
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser_support import Served, chromium, served
from page_support import Site, post
from playwright.sync_api import Browser, expect

from edgekit.wire.states import FleetState
from fleet.rules.access import Role
from fleet.rules.gates import Outcome, Verdict

pytestmark = pytest.mark.browser
LABEL = "r1"
# By the state that it is in now, or by what it was when they looked.
TOO_LATE = re.compile("cannot approve now|has changed since you looked")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def at(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A rollout under way in a small fleet."""
    site.releases()
    states = [FleetState.SUCCEEDED] * 3 + [FleetState.FAILED] + [FleetState.PENDING] * 4
    names = [f"d{number}" for number in range(8)]
    site.devices(names, labels='{"site":"lab"}')
    verdicts = (Verdict("error_rate < 1%", Outcome.INCONCLUSIVE, "40 requests, 100 are needed"),)
    site.rollout(dict(zip(names, states, strict=True)), verdicts=verdicts, awaits=1)
    with served(site, monkeypatch) as found:
        yield found


def pause(at: Served) -> None:
    """As another operator does, elsewhere."""
    assert post(at.site.person("bob", Role.OPERATOR), f"/rollouts/{LABEL}/pause").status_code == 303
    at.events.say("rollout", LABEL)


def test_a_page_that_is_open_follows_what_happens_without_being_loaded_again(
    at: Served, browser: Browser
) -> None:
    page = at.visit(browser)
    at.open(page, f"/rollouts/{LABEL}")
    expect(page.get_by_role("link", name="Pause")).to_be_visible()
    page.evaluate("window.same = true")
    pause(at)
    expect(page.get_by_role("link", name="Resume")).to_be_visible()
    assert page.evaluate("window.same"), "it is the same page"


def test_nothing_moves_away_from_under_a_hand_that_is_about_to_click(at: Served, browser: Browser) -> None:
    page = at.visit(browser)
    at.open(page, f"/rollouts/{LABEL}")
    button = page.get_by_role("link", name="Pause")
    button.hover()
    with page.expect_response(lambda answer: "x-fragment" in answer.request.headers):
        pause(at)
    page.wait_for_timeout(300)
    expect(button).to_be_visible()
    page.mouse.move(2, 2)
    expect(page.get_by_role("link", name="Resume")).to_be_visible()


def test_a_lost_connection_is_told_with_the_time_and_is_made_good(at: Served, browser: Browser) -> None:
    page = at.visit(browser)
    at.open(page, f"/rollouts/{LABEL}")
    lost = page.get_by_text("The connection to the service is lost.")
    expect(lost).to_be_hidden()
    at.events.drop()
    expect(lost).to_be_visible()
    expect(lost.locator("time")).to_have_attribute("title", re.compile(r"^\d{4}-\d\d-\d\d .*UTC$"))
    pause(at)
    at.events.is_up = True
    expect(lost).to_be_hidden()
    expect(page.get_by_role("link", name="Resume")).to_be_visible()


def test_events_about_something_else_ask_for_nothing(at: Served, browser: Browser) -> None:
    page = at.visit(browser)
    at.open(page, f"/rollouts/{LABEL}")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    at.events.say("rollout", "r7")
    at.events.say("device", "d1")
    with page.expect_response(lambda answer: "x-fragment" in answer.request.headers):
        at.events.say("rollout", LABEL)
    assert len(asked) == 1


def test_keys_search_help_and_theme(at: Served, browser: Browser) -> None:
    page = at.visit(browser)
    page.goto(at.url)
    page.keyboard.press("?")
    expect(page.get_by_role("heading", name="Help")).to_be_visible()
    page.get_by_role("button", name="Dark").click()
    assert (
        page.evaluate("getComputedStyle(document.body).colorScheme, document.documentElement.dataset.theme")
        == "dark"
    )
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("d3")
    page.keyboard.press("Enter")
    page.wait_for_url("**/devices/d3")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark", "it is kept"
    page.keyboard.press("g")
    page.keyboard.press("r")
    page.wait_for_url("**/rollouts")


def test_it_is_read_and_worked_with_without_javascript(at: Served, browser: Browser) -> None:
    page = at.visit(browser, java_script_enabled=False)
    page.goto(f"{at.url}/rollouts/{LABEL}")
    page.get_by_role("link", name="Abort").click()
    page.get_by_label("Type r1").fill("r1")
    page.get_by_role("button", name="Abort it").click()
    assert page.get_by_text("Rollout r1 is aborted.").is_visible()
    page.get_by_role("button", name="Help").click()
    assert page.get_by_role("button", name="Sign out").is_visible()


PATHS = (
    "/", "/rollouts", f"/rollouts/{LABEL}", f"/rollouts/{LABEL}/rollback", "/rollouts/start", "/devices", "/devices/d3",
    "/devices/d3/delete", "/releases", "/releases/digits/2.0", "/experiments", "/audit", "/settings", "/enrol", "/search?q=d",
)  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.proof)])
def test_roles_names_and_contrast_hold_on_every_page_and_nothing_comes_from_elsewhere(
    at: Served, browser: Browser, scheme: str
) -> None:
    page = at.visit(browser, color_scheme=scheme)
    elsewhere: list[str] = []
    page.on(
        "request",
        lambda request: elsewhere.append(request.url) if not request.url.startswith(at.url) else None,
    )
    page.on("console", lambda message: elsewhere.append(message.text) if message.type == "error" else None)
    found = {}
    for path in PATHS:
        page.set_viewport_size({"width": 360, "height": 800})
        page.goto(at.url + path)
        wide = page.evaluate("document.documentElement.scrollWidth")
        if scheme == "light":
            page.set_viewport_size({"width": 1400, "height": 800})
        violations = [
            (one["id"], [node["target"] for node in one["nodes"]])
            for one in Axe().run(page).response["violations"]
        ]
        if violations or wide > 360:
            found[path] = (wide, violations)
    assert found == {}
    assert elsewhere == []


def test_contrast_that_is_too_low_is_found(at: Served, browser: Browser) -> None:
    """What judges is judged."""
    page = at.visit(browser, bypass_csp=True)
    page.goto(at.url)
    page.add_style_tag(content=".lead { color: #ccc !important; }")
    assert "color-contrast" in {one["id"] for one in Axe().run(page).response["violations"]}


def test_two_operators_at_once_see_the_same_and_the_later_one_is_told(at: Served, browser: Browser) -> None:
    ann, bob = at.visit(browser, "ann"), at.visit(browser, "bob", Role.OPERATOR)
    bob.goto(f"{at.url}/rollouts/{LABEL}/approve")
    ann.goto(f"{at.url}/rollouts/{LABEL}/abort")
    ann.get_by_label("Type r1").fill(LABEL)
    ann.get_by_role("button", name="Abort it").click()
    expect(ann.get_by_text("Rollout r1 is aborted.")).to_be_visible()
    bob.get_by_role("button", name="Let the stage begin").click()
    expect(bob.get_by_role("alert")).to_contain_text(TOO_LATE)


def test_what_is_printed_is_light_has_its_charts_and_no_buttons(at: Served, browser: Browser) -> None:
    page = at.visit(browser)
    page.goto(f"{at.url}/rollouts/{LABEL}")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.set_viewport_size({"width": 760, "height": 1000})
    assert page.get_by_role("link", name="Pause").is_visible()
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    for hidden in (page.get_by_role("link", name="Pause"), page.locator("nav"), page.locator("header.top")):
        assert not hidden.first.is_visible()
    page.evaluate("""document.querySelector("main").insertAdjacentHTML("beforeend",
        '<figure id="f"><div class="wide mid"><p>small</p></div><div class="narrow"></div></figure>')""")
    assert page.locator("#f p").is_visible(), "a small chart has one width only"
