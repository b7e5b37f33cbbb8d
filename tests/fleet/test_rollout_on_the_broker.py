"""Whole rollouts through the real service, the real broker and scripted devices."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_support import Behaviour, FakeDevice, Service, make_bundle, wait_until

from fleet import api
from fleet.client import publishing
from fleet.client.rest import Client

GATES = ("error_rate < 5% min 100 requests", "latency_p95 <= 10ms min 100 requests")
SITES = itertools.count(1)


class Fleet:
    """Devices of one site and an operator's client; several sites share a service without noticing each other."""

    def __init__(self, service: Service, folder: Path, site: str) -> None:
        self.service = service
        self.folder = folder
        self.site = site
        self.client: Client = service.client()
        self.devices: dict[str, FakeDevice] = {}

    def add(
        self,
        *names: str,
        behaviours: dict[str, Behaviour] | None = None,
        deployments: tuple[str, ...] = ("digits",),
    ) -> None:
        for name in names:
            file = self.client.enroll(api.NewDevice(f"{self.site}-{name}", deployments, {"site": self.site}))
            device = FakeDevice(file, behaviours or {})
            device.enrol()
            device.connect()
            self.devices[name] = device
        wait_until(
            lambda: {self.short(d.device) for d in self.seen() if d.online and d.agent_version} >= set(names),
            "the devices are online",
        )

    def short(self, device: str) -> str:
        return device.removeprefix(f"{self.site}-")

    def seen(self) -> list[api.DeviceView]:
        return [device for device in self.client.devices() if device.labels["site"] == self.site]

    def publish(self, version: str, name: str = "digits") -> str:
        path = make_bundle(self.folder, version, name=name)
        keys = self.service.state / "publisher"
        [checked] = publishing.check(self.client, [path])
        return publishing.publish(self.client, checked, keys, lambda _: None).bundle.sha256

    def roll_out(self, version: str, **more: object) -> api.RolloutView:
        wanted = {"stages": "1,100%", "soak": "1s", "gates": GATES, "deadline": "5s"} | more
        release = version if "@" in version else f"digits@{version}"
        answer = self.client.start(api.NewRollout(release, f"site={self.site}", **wanted))
        assert answer.rollout is not None
        return answer.rollout

    def wait_for(self, rollout: api.RolloutView, *statuses: str, timeout_s: float = 25) -> api.RolloutView:
        found = rollout

        def is_there() -> bool:
            nonlocal found
            found = self.client.rollout(rollout.id)
            return found.status in statuses

        wait_until(is_there, f"{rollout.id} is {' or '.join(statuses)}", timeout_s=timeout_s)
        return found

    def versions(self) -> dict[str, str]:
        return {
            self.short(d.device): " ".join(one.version for one in d.deployments.values()) for d in self.seen()
        }

    def close(self) -> None:
        for device in self.devices.values():
            device.close()
        self.client.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("shared"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def fleet(shared: Service, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(shared, tmp_path / "bundles", f"s{next(SITES)}")
    yield made
    made.close()


@pytest.fixture
def own_fleet(running: Service, tmp_path: Path) -> Iterator[Fleet]:
    """With a service that the test may kill."""
    made = Fleet(running, tmp_path / "bundles", "lab")
    yield made
    made.close()


def install_first(fleet: Fleet, version: str = "1.0.0") -> None:
    fleet.publish(version)
    done = fleet.wait_for(fleet.roll_out(version, stages="100%"), "completed", "paused", "rolled_back")
    assert done.status == "completed", done.reason


@pytest.mark.proof
def test_a_good_release_goes_through_two_stages_and_becomes_the_assignment(fleet: Fleet) -> None:
    fleet.add("a", "b", "c", "d")
    fleet.publish("1.0.0")
    rollout = fleet.roll_out("1.0.0")
    assert [m.stage for m in rollout.members].count(1) == 1
    done = fleet.wait_for(rollout, "completed", "paused", "rolled_back")
    assert (done.status, done.reason, done.counts) == ("completed", "", {"succeeded": 4})
    assert fleet.versions() == dict.fromkeys("abcd", "1.0.0")
    assert all(len(device.orders) == 1 for device in fleet.devices.values())
    fleet.add("late")
    wait_until(
        lambda: fleet.versions()["late"] == "1.0.0", "a device that enrols later follows the assignment"
    )
    assert all(d.telemetry.requests > 0 for d in fleet.seen() if fleet.short(d.device) != "late")


def test_a_release_that_is_slow_on_the_device_is_rolled_back_by_the_latency_gate(fleet: Fleet) -> None:
    fleet.add("a", "b", "c", behaviours={"2.0.0": Behaviour(infer_ms=50)})
    install_first(fleet)
    fleet.publish("2.0.0")
    done = fleet.wait_for(fleet.roll_out("2.0.0"), "rolled_back", "completed", "paused")
    assert done.status == "rolled_back"
    assert "latency_p95" in done.reason
    assert sum(member.stage is not None for member in done.members) == 1, "it never left its first stage"
    assert fleet.versions() == dict.fromkeys("abc", "1.0.0")
    canary = next(fleet.short(member.device) for member in done.members if member.stage is not None)
    counters = [order.counter for order in fleet.devices[canary].orders]
    assert counters == sorted(set(counters)), "going back is a newer order"


def test_two_models_move_together_and_where_the_second_is_bad_both_go_back(fleet: Fleet) -> None:
    behaviours = {"3.1.0": Behaviour(infer_ms=50), "3.2.0": Behaviour(fails_selftest=True)}
    fleet.add("a", "b", "c", behaviours=behaviours, deployments=("detector", "reader"))
    fleet.add("alone", deployments=("detector",))
    for name, version in (
        ("detector", "1.0.0"), ("reader", "1.0.1"), ("detector", "2.0.0"), ("reader", "3.1.0"), ("reader", "3.2.0"),
    ):  # fmt: skip
        fleet.publish(version, name)
    first = fleet.roll_out("detector@1.0.0 reader@1.0.1", stages="100%")
    assert fleet.wait_for(first, "completed", "paused", "rolled_back").status == "completed"
    assert fleet.versions() == dict.fromkeys("abc", "1.0.0 1.0.1") | {"alone": ""}
    assert all(len(fleet.devices[name].orders) == 1 for name in "abc"), "both by one order"

    slow = fleet.roll_out("detector@2.0.0 reader@3.1.0")
    done = fleet.wait_for(slow, "rolled_back", "completed", "paused")
    assert (done.status, done.release) == ("rolled_back", "detector@2.0.0 reader@3.1.0")
    assert done.reason.startswith("reader: latency_p95"), done.reason
    assert fleet.versions() == dict.fromkeys("abc", "1.0.0 1.0.1") | {"alone": ""}
    [canary] = [fleet.short(m.device) for m in done.members if m.stage is not None]
    ordered = [
        [order.deployments[name].target.split("/")[1] for name in ("detector", "reader")]
        for order in fleet.devices[canary].orders
    ]
    assert ordered == [["1.0.0", "1.0.1"], ["2.0.0", "3.1.0"], ["1.0.0", "1.0.1"]]

    broken = fleet.roll_out("detector@2.0.0 reader@3.2.0", on_violation="pause")
    paused = fleet.wait_for(broken, "rolled_back", "completed", "paused")
    [failed] = [member for member in paused.members if member.stage is not None]
    assert (paused.status, failed.reason.startswith("reader: self-test")) == ("paused", True)
    wait_until(
        lambda: fleet.versions() == dict.fromkeys("abc", "1.0.0 1.0.1") | {"alone": ""},
        "the detector went back with the reader, though the rollout only pauses",
    )


def test_a_release_that_fails_its_self_test_stops_at_the_first_device(fleet: Fleet) -> None:
    fleet.add("a", "b", behaviours={"2.0.0": Behaviour(fails_selftest=True)})
    install_first(fleet)
    fleet.publish("2.0.0")
    done = fleet.wait_for(fleet.roll_out("2.0.0"), "rolled_back", "completed", "paused")
    assert done.status == "rolled_back"
    assert "no device of this stage reached the release" in done.reason
    assert any("self-test" in member.reason for member in done.members)
    assert fleet.versions() == {"a": "1.0.0", "b": "1.0.0"}


def test_a_device_that_is_switched_off_does_not_block_and_follows_later(fleet: Fleet) -> None:
    fleet.add("a", "b", "c")
    fleet.devices["b"].close(politely=False)
    wait_until(lambda: any(not d.online for d in fleet.seen()), "b is offline")
    fleet.publish("1.0.0")
    done = fleet.wait_for(fleet.roll_out("1.0.0", stages="100%"), "completed", "paused", "rolled_back")
    assert done.status == "completed", done.reason
    assert done.counts == {"succeeded": 2, "pending": 1}
    away = fleet.devices["b"]
    away._stop.clear()
    away.incarnation, away.nonce = 2, "f" * 16
    away.connect()
    wait_until(lambda: fleet.versions()["b"] == "1.0.0", "b follows its stored order")


def test_a_device_taken_out_of_service_in_the_middle_does_not_block_a_rollout(fleet: Fleet) -> None:
    fleet.add("a", "b", "c")
    fleet.devices["b"]._order = lambda _data: None  # type: ignore[method-assign]  # online, and deaf
    fleet.publish("1.0.0")
    rollout = fleet.roll_out("1.0.0", stages="100%", deadline="10m")
    wait_until(lambda: fleet.client.rollout(rollout.id).counts.get("succeeded") == 2, "the others have it")
    assert fleet.client.rollout(rollout.id).status == "running"
    fleet.client.decommission(f"{fleet.site}-b", "scrapped")
    done = fleet.wait_for(rollout, "completed", "paused", "rolled_back")
    assert (done.status, done.counts) == ("completed", {"succeeded": 2}), done.reason
    back = fleet.client.turn(rollout.id, "rollback")
    assert fleet.wait_for(back, "rolled_back").counts == {"rolled_back": 2}


def test_no_traffic_pauses_and_never_passes(fleet: Fleet) -> None:
    fleet.add("a", "b", behaviours={"1.0.0": Behaviour(requests=0)})
    fleet.publish("1.0.0")
    done = fleet.wait_for(fleet.roll_out("1.0.0"), "completed", "paused", "rolled_back")
    assert done.status == "paused"
    assert "inconclusive" in done.reason
    fleet.client.turn(done.id, "rollback")
    fleet.wait_for(done, "rolled_back")
    assert set(fleet.versions().values()) == {""}


def test_an_operator_pauses_resumes_and_aborts(fleet: Fleet) -> None:
    fleet.add("a", "b", "c")
    install_first(fleet)
    fleet.publish("2.0.0")
    rollout = fleet.roll_out("2.0.0", soak="30s")
    wait_until(lambda: fleet.client.rollout(rollout.id).counts.get("succeeded") == 1, "the canary arrived")
    assert fleet.client.turn(rollout.id, "pause").status == "paused"
    assert fleet.client.turn(rollout.id, "resume").status == "running"
    assert fleet.client.turn(rollout.id, "abort").status == "aborting"
    fleet.wait_for(rollout, "aborted")
    assert sorted(fleet.versions().values()) == ["1.0.0", "1.0.0", "2.0.0"], "the committed one stays"


def test_one_device_of_a_site_at_a_time_with_approval_and_the_next_rollout_in_the_queue(fleet: Fleet) -> None:
    fleet.add("a", "b", "c")
    install_first(fleet)
    fleet.publish("2.0.0")
    # Nobody reports that it arrived before the test has seen who was told.
    deaf = {name: device._order for name, device in fleet.devices.items()}
    heard: dict[str, list[bytes]] = {name: [] for name in deaf}
    for name, device in fleet.devices.items():
        device._order = heard[name].append  # type: ignore[method-assign]  # keeps the order for later
    rollout = fleet.roll_out("2.0.0", stages="2,100%", approve="2", per_site=1, deadline="1m")
    wait_until(lambda: any(heard.values()), "the first is told")
    assert fleet.client.rollout(rollout.id).waiting == 1, "the second waits for the first"
    for name, device in fleet.devices.items():
        device._order = deaf[name]  # type: ignore[method-assign]
        for order in heard[name]:
            device._order(order)
    wait_until(lambda: fleet.client.rollout(rollout.id).awaits == 2, "the second stage waits for approval")
    assert sorted(fleet.versions().values()) == ["1.0.0", "2.0.0", "2.0.0"]
    back = fleet.roll_out("1.0.0", stages="100%", queue=True)
    assert back.status == "queued"
    assert fleet.client.turn(rollout.id, "approve").awaits is None
    assert fleet.wait_for(rollout, "completed", "paused", "rolled_back").status == "completed"
    assert fleet.wait_for(back, "completed", "paused", "rolled_back").status == "completed"
    assert set(fleet.versions().values()) == {"1.0.0"}


def test_a_completed_rollout_can_be_rolled_back_and_so_is_its_assignment(fleet: Fleet) -> None:
    fleet.add("a", "b")
    install_first(fleet)
    fleet.publish("2.0.0")
    done = fleet.wait_for(fleet.roll_out("2.0.0", stages="100%"), "completed")
    fleet.client.turn(done.id, "rollback")
    fleet.wait_for(done, "rolled_back")
    fleet.add("late")
    wait_until(lambda: fleet.versions() == dict.fromkeys(("a", "b", "late"), "1.0.0"), "everyone runs 1.0.0")


@pytest.mark.proof
def test_a_broker_that_dies_is_started_again_and_the_rollout_goes_on(own_fleet: Fleet) -> None:
    fleet = own_fleet
    fleet.add("a", "b")
    fleet.publish("1.0.0")
    rollout = fleet.roll_out("1.0.0", soak="3s")
    assert fleet.service.kill_broker()
    wait_until(lambda: not fleet.client.status().is_connected, "the service notices")
    done = fleet.wait_for(rollout, "completed", "paused", "rolled_back", timeout_s=60)
    assert done.status == "completed", done.reason


@pytest.mark.proof
def test_a_service_killed_in_the_middle_goes_on_where_it_was(own_fleet: Fleet) -> None:
    fleet = own_fleet
    fleet.add("a", "b", "c")
    fleet.publish("1.0.0")
    rollout = fleet.roll_out("1.0.0", soak="2s")
    wait_until(lambda: fleet.client.rollout(rollout.id).counts.get("succeeded") == 1, "the canary arrived")
    assert fleet.service.process is not None
    fleet.service.process.kill()
    fleet.service.process.wait()
    fleet.service.start()
    done = fleet.wait_for(rollout, "completed", "paused", "rolled_back", timeout_s=60)
    assert done.status == "completed", done.reason
    assert fleet.versions() == dict.fromkeys("abc", "1.0.0")


def test_every_report_is_acknowledged_and_counted_once(fleet: Fleet) -> None:
    fleet.add("a")
    install_first(fleet)
    device = fleet.devices["a"]
    device.sends_telemetry = False
    wait_until(lambda: device.acked >= set(range(1, device._seq + 1)), "all are acknowledged")
    before = fleet.seen()[0].telemetry
    device.acked.clear()
    for _ in range(3):
        device.report(device.windows(), seq=10_000)
    wait_until(lambda: 10_000 in device.acked, "a repeat is acknowledged too")
    wait_until(lambda: fleet.seen()[0].telemetry.windows > before.windows, "it is counted")
    after = fleet.seen()[0].telemetry
    assert (after.windows, after.requests) == (before.windows + 1, before.requests + 50)


def test_forged_and_broken_messages_are_counted_and_change_nothing(own_fleet: Fleet) -> None:
    fleet = own_fleet
    fleet.add("a", "b")
    forger = fleet.devices["a"]
    forger.publish("telemetry", b"{")
    forger.publish("reported", b"\xff" * 1000)
    forger.publish("telemetry", b'{"version": 9}')
    forger.profile = "raspberry-pi-5"
    forger.say()
    wait_until(lambda: sum(fleet.client.status().dropped.values()) >= 4, "they are counted")
    dropped = fleet.client.status().dropped
    assert dropped["claims another profile than it enrolled with"] == 1
    assert dropped["unreadable report"] == 2
    assert {d.profile for d in fleet.seen()} == {"x86-64-v3"}


@pytest.mark.proof
@pytest.mark.postgres
def test_a_rollout_on_postgresql(service: Service, empty_postgresql: str, tmp_path: Path) -> None:
    service.more = ("--database", empty_postgresql)
    service.start()
    fleet = Fleet(service, tmp_path / "bundles", "lab")
    fleet.add("a", "b")
    install_first(fleet)
    other = Service(tmp_path / "other", more=service.more)
    other.folder.mkdir()
    process = other.spawn()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 5
    assert "whose home is elsewhere" in said
    shutil.copytree(service.state, other.state)
    other.start()
    assert (service.client().status().is_controller, other.client().status().is_controller) == (True, False)
    other.stop()
    fleet.close()
