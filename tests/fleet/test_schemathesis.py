"""Whatever schemathesis asks of a running service, right or wrong, the answer is one that its description allows.

All of schemathesis's checks run as they are. Only two things are told to it that no schema can: texts of the small
languages (`format`), and that an `Idempotency-Key` is a new one for each request.
"""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from fleet_support import FakeDevice, Service, make_bundle, wait_until
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup

from fleet import api
from fleet.rules.access import RULES, Open
from fleet.server.api.repeats import HEADER

WORDS = {
    "edgekit-selector": (
        "all",
        "site=lab",
        "not (device in (lab-1, lab-2))",
        "site=roof or profile!=x86-64-v3",
    ),
    "edgekit-scope": ("", "site=lab", "profile=x86-64-v3"),
    "edgekit-stages": ("", "100%", "1,100%", "10%,50%,100%"),
    "edgekit-gate": ("error_rate < 1%", "latency_p95 <= 1.1 * control", "drift_psi < 0.2 min 5 windows"),
    "edgekit-window": ("22:00-05:00", "mon-fri 22:00-05:00", "sat,sun 00:00-24:00"),
    "edgekit-time-zone": ("", "UTC", "Europe/Zurich"),
    "edgekit-goal": ("metric:sold", "min metric:cost", "error_rate", "latency_mean"),
    "edgekit-split": ("50/50", "90/10", "1/99"),
    "edgekit-filter": ("", "site=lab", "online=yes and not state=failed", "last_seen < 5m or refused=yes"),
    "edgekit-order": ("", "-last_seen", "state", "site"),
    "edgekit-place": ("",),
    "edgekit-password": ("four unrelated words", "correct horse battery staple"),
}
for name, texts in WORDS.items():
    schemathesis.openapi.format(name, st.sampled_from(texts))

# A stream has no end: `test_events` listens to it.
ENDLESS = "/api/v1/events"
OPERATIONS = sorted(key for key in RULES if key[1].startswith(("/api/v1", "/v1")) and key[1] != ENDLESS)
DEVICES = ("lab-1", "lab-2", "lab-3")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A fleet with two releases and three devices that run."""
    made = Service(tmp_path_factory.mktemp("fleet"))
    made.start()
    client, devices = made.client(), []
    for version in ("1.0.0", "2.0.0"):
        bundle = make_bundle(tmp_path_factory.mktemp("bundle"), version)
        command = [
            sys.executable,
            "-m",
            "edgekit",
            "fleet",
            "--fleet",
            str(made.state),
            "publish",
            str(bundle),
        ]
        subprocess.run(command, check=True, capture_output=True)
    for name in DEVICES:
        device = FakeDevice(client.enroll(api.NewDevice(name, ("digits",), {"site": "lab"})))
        device.enrol()
        device.connect()
        devices.append(device)
    wait_until(
        lambda: sum(d.online and bool(d.agent_version) for d in client.devices()) == 3, "all are online"
    )
    yield made
    for device in devices:
        device.close()
    made.stop()


@pytest.fixture(scope="module")
def described(shared: Service) -> Any:
    answer = httpx.get(f"http://127.0.0.1:{shared.http_port}/openapi.json", trust_env=False)
    return schemathesis.openapi.from_dict(answer.json())


def ask(shared: Service, described: Any, key: tuple[str, str], mode: GenerationMode, examples: int) -> None:
    method, path = key
    token = (shared.state / "client.toml").read_text().split('token = "')[1].split('"')[0]
    known = {} if isinstance(RULES[key], Open) else {"Authorization": f"Bearer {token}"}
    url = f"http://127.0.0.1:{shared.http_port}"

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(case=described[path][method].as_strategy(generation_mode=mode))
    def asked(case: Any) -> None:
        headers = dict(known)
        if mode is GenerationMode.POSITIVE and HEADER in (case.headers or {}):
            headers[HEADER] = str(uuid.uuid4())
        answer = case.call(base_url=url, headers=headers)
        case.validate_response(answer, headers=headers)

    try:
        asked()
    except Unsatisfiable:
        # Nothing about a request that takes nothing can be wrong.
        assert mode is GenerationMode.NEGATIVE


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("key", OPERATIONS, ids=" ".join)
def test_every_answer_is_one_that_the_description_allows(
    shared: Service, described: Any, key: tuple[str, str], mode: GenerationMode
) -> None:
    ask(shared, described, key, mode, 2)


@pytest.mark.proof
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("key", OPERATIONS, ids=" ".join)
def test_so_it_is_asked_a_hundred_times(
    shared: Service, described: Any, key: tuple[str, str], mode: GenerationMode
) -> None:
    ask(shared, described, key, mode, 100)


def test_an_answer_that_is_not_described_is_found(shared: Service) -> None:
    """What judges is judged: the same with a description that lies."""
    document = httpx.get(f"http://127.0.0.1:{shared.http_port}/openapi.json", trust_env=False).json()
    document["components"]["schemas"]["Whoami"]["properties"]["scope"]["type"] = "integer"
    lying = schemathesis.openapi.from_dict(document)
    with pytest.raises(FailureGroup, match="found 1 distinct failure") as raised:
        ask(shared, lying, ("GET", "/api/v1/whoami"), GenerationMode.POSITIVE, 1)
    [failure] = raised.value.exceptions
    assert "Response violates schema" in str(failure)
