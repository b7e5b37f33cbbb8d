"""Changing workers under load, and killing everything in the middle of it."""

import http.client
import json
import threading
import time

import pytest

from edgekit.wire.messages import OrderOptions


class Load:
    """Callers without a pause: some keep their connection, some make a new one for each request."""

    def __init__(self, port, body, keep_alive=3, fresh=2):
        self.port = port
        self.body = body
        self.versions: list[str] = []
        self.failures: list[str] = []
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(number < keep_alive,), daemon=True)
            for number in range(keep_alive + fresh)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)

    def _call(self, keeps):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        while not self._stopping.is_set():
            try:
                connection.request("POST", "/predict", self.body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer = json.loads(response.read())
                if response.status == 200:
                    self.versions.append(answer["version"])
                else:
                    self.failures.append(f"{response.status} {answer}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
            if not keeps:
                connection.close()
        connection.close()


NO_OVERLAP = """
extends = "x86-64-v3"
name = "one-at-a-time"
overlap = false
"""


@pytest.mark.parametrize(
    "overlap",
    [
        pytest.param(True, id="overlap"),
        pytest.param(False, id="one at a time", marks=pytest.mark.proof),
    ],
)
def test_a_swap_under_load_loses_no_request(overlap, fleet, make_agent, make_bundle, tools, tmp_path):
    profile = None if overlap else tmp_path / "one-at-a-time.toml"
    if profile is not None:
        profile.write_text(NO_OVERLAP)
    agent = make_agent(fleet, profile=str(profile or "x86-64-v3"))
    releases = [make_bundle(version=f"{number}.0.0", seed=number) for number in (1, 2)]
    fleet.order(fleet.publish(releases[0]))
    tools.wait_until(lambda: fleet.runs(releases[0]), "the first release")
    body = json.dumps({"input": tools.digit_images(1)[0].tolist()}).encode()
    with Load(agent.port, body) as load:
        for number in range(1, 5):
            release = releases[number % 2]
            fleet.order(fleet.publish(release), options=OrderOptions(probation_s=0.2))
            tools.wait_until(lambda release=release: fleet.runs(release), f"swap {number}")
    assert load.failures == []
    assert set(load.versions) == {"1.0.0", "2.0.0"}
    assert len(load.versions) > 500
    reported = sum(window.requests for report in fleet.reports for window in report.deployments)
    agent.stop()
    tools.wait_until(
        lambda: sum(w.requests for r in unique(fleet.reports) for w in r.deployments) == len(load.versions),
        f"every request is in a report ({reported} of {len(load.versions)})",
        5,
    )


def unique(reports):
    return {(report.boot, report.seq): report for report in reports}.values()


def test_ending_under_load_answers_what_was_begun(fleet, make_agent, make_bundle, tools):
    agent = make_agent(fleet)
    release = make_bundle()
    fleet.order(fleet.publish(release))
    tools.wait_until(lambda: fleet.runs(release), "the release")
    body = json.dumps({"input": tools.digit_images(1)[0].tolist()}).encode()
    with Load(agent.port, body, keep_alive=3, fresh=0) as load:
        tools.wait_until(lambda: len(load.versions) > 50, "load")
        began = time.monotonic()
        code = agent.stop()
        took = time.monotonic() - began
        failures = list(load.failures)
    assert code == 0
    assert took < 5
    # A connection may close between two requests; none that was begun gets half an answer.
    assert not any("IncompleteRead" in failure for failure in failures)


def proof(value):
    """With make proofs."""
    return pytest.param(value, marks=pytest.mark.proof)


@pytest.mark.parametrize(
    "step", [*map(proof, ("fetch", "stage", "selftest")), "switch", proof("probation"), proof("commit")]
)
def test_a_kill_of_everything_in_the_middle_of_an_update(step, fleet, make_agent, make_bundle, tools):
    agent = make_agent(fleet)
    releases = [make_bundle(version=f"{number}.0.0", seed=number) for number in (1, 2)]
    fleet.order(fleet.publish(releases[0]))
    tools.wait_until(lambda: fleet.runs(releases[0]), "the first release")
    fleet.chunk_delay_s = 0.05 if step == "fetch" else 0
    fleet.acknowledges = step != "commit"
    before = len(agent.log)
    fleet.order(fleet.publish(releases[1]))
    while f"step={step}" not in agent.log[before:]:
        time.sleep(0.001)
    agent.kill_tree()
    stood = json.loads((agent.state / "deployments" / "digits" / "machine.json").read_text().splitlines()[0])[
        "step"
    ]
    assert stood in (step, *{"stage": ["selftest"], "fetch": ["stage"]}.get(step, []))
    fleet.acknowledges = True
    agent.start()

    def version():
        answer = tools.Client(agent.port).post("/predict", {"input": tools.digit_images(1)[0].tolist()})
        return answer.status == 200 and answer.json["version"]

    assert tools.wait_until(version, "it serves again") in ("1.0.0", "2.0.0")
    fleet.send_order()
    tools.wait_until(lambda: fleet.runs(releases[1]), "the second release is committed")
    assert tools.wait_until(version, "it serves") == "2.0.0"
    tools.wait_until(lambda: fleet.now.boot.incarnation == 4, "the second start counts as one")
    numbers = [(report.boot, report.seq) for report in fleet.reports]
    assert len({(boot.incarnation, seq) for boot, seq in numbers}) == len(set(numbers))
