"""One scene over real processes: a rollout that the fleet stops is told to a webhook once, although the receiver refuses at
first and the service is killed in between.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from alert_support import SECRET, receiver
from fleet_support import Behaviour, FakeDevice, Service, make_bundle, wait_until

from fleet import api
from fleet.client import publishing


def edgekit(service: Service, *words: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "edgekit", "fleet", "--fleet", str(service.state), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert "s3cret-path" not in done.stdout + done.stderr
    return done.stdout


def test_a_stopped_rollout_is_told_once_over_a_refusing_receiver_and_a_killed_service(
    service: Service,
) -> None:
    service.start()
    client = service.client()
    with receiver() as hook:
        (service.folder / "hook.secret").write_text(SECRET + "\n")
        (service.folder / "hook.secret").chmod(0o600)
        (service.folder / "hook.url").write_text(hook.url + "\n")
        (service.folder / "hook.url").chmod(0o600)
        files = [
            "--url-file",
            str(service.folder / "hook.url"),
            "--secret-file",
            str(service.folder / "hook.secret"),
        ]
        edgekit(service, "alert-targets", "add", "ops", "webhook", *files)
        assert "arrived: it answered 204" in edgekit(service, "alert-targets", "test", "ops")
        hook.status = 503
        assert "did not arrive: it answered 503" in edgekit(service, "alert-targets", "test", "ops", code=1)
        devices = begun(service, client)
        wait_until(
            lambda: client.rollout("r1").status in ("paused", "rolling_back", "rolled_back"), "it is stopped"
        )
        tests = len(hook.got)
        wait_until(lambda: len(hook.got) > tests, "the receiver was tried", timeout_s=40)
        service.stop(signal.SIGKILL)
        hook.status = 204
        service.start()
        wait_until(lambda: "rollout-stopped" in hook.kinds(), "it arrives after the restart", timeout_s=40)
        listed = json.loads(edgekit(service, "alerts", "list", "--json"))
        [alert] = [one for one in listed if one["kind"] == "rollout-stopped"]
        wait_until(lambda: stopped(service)["told"] == ["ops"], "that is noted")
        edgekit(service, "alerts", "acknowledge", alert["id"], "--reason", "seen")
        assert stopped(service)["acknowledged_by"].startswith("token:admin")
        assert alert["words"].startswith("r1 (digits@2.0 to all) ")
        assert "no device of this stage reached the release" in alert["words"]
        told = edgekit(service, "alerts", "list")
        assert alert["id"] in told
        assert "to do:" in told
        assert hook.kinds().count("rollout-stopped") == 1
        assert all(one.is_signed() for one in hook.got)
        for device in devices:
            device.close()
    client.close()


def stopped(service: Service) -> dict[str, Any]:
    [found] = [
        one
        for one in json.loads(edgekit(service, "alerts", "list", "--json"))
        if one["kind"] == "rollout-stopped"
    ]
    return dict(found)


def begun(service: Service, client: Any) -> list[FakeDevice]:
    """A rollout of a bundle that fails its self-test everywhere."""
    [checked] = publishing.check(client, [make_bundle(Path(service.folder) / "b", "2.0")])
    publishing.publish(client, checked, service.state / "publisher", lambda _: None)
    devices = []
    for number in range(3):
        file = client.enroll(api.NewDevice(f"d{number}", ("digits",)))
        made = FakeDevice(file, {"2.0": Behaviour(fails_selftest=True)})
        made.enrol()
        made.connect()
        devices.append(made)
    wait_until(lambda: sum(one.online for one in client.devices()) == 3, "all are there")
    gates = ("install_failures < 50%",)
    client.start(
        api.NewRollout(release="digits@2.0", to="all", gates=gates, soak="0s", stages="100%", holdback="0")
    )
    return devices
