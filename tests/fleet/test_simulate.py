"""Virtual devices: the bytes they speak, how releases behave on them, and one scene over a real service."""

import json
import random

import click
import msgspec
import pytest
from fleet_support import Service, make_bundle, wait_until
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.wire.messages import DeploymentWindow
from fleet import api
from fleet.client import publishing
from fleet.simulate import mqtt
from fleet.simulate.behaviour import Windows, World, with_faults
from fleet.simulate.cli import share, simulate


@given(st.binary(max_size=300), st.sampled_from([0, 1]), st.lists(st.integers(1, 50), max_size=20))
def test_packets_are_whole_however_the_bytes_come(payload: bytes, retain: int, cuts: list[int]) -> None:
    sent = [mqtt.publish("a/b", payload, 7, retain=bool(retain)), mqtt.puback(9), mqtt.PING_REQUEST]
    stream, buffer, got = b"".join(sent), bytearray(), []
    while stream:
        size = cuts.pop() if cuts else len(stream)
        buffer += stream[:size]
        stream = stream[size:]
        got += list(mqtt.packets(buffer))
    assert not buffer
    assert [kind for kind, _, _ in got] == [mqtt.PUBLISH, mqtt.PUBACK, 12]
    assert mqtt.read_publish(*got[0][1:]) == mqtt.Published("a/b", payload, 7)


def test_a_length_of_five_bytes_is_none() -> None:
    with pytest.raises(ValueError, match="four bytes"):
        list(mqtt.packets(bytearray(b"\x30\xff\xff\xff\xff\x01")))


def test_a_connack_says_how_much_may_be_under_way() -> None:
    assert mqtt.read_connack(b"\x00\x00\x03\x21\x00\x14") == (0, 20)
    assert mqtt.read_connack(b"\x00\x00\x06\x22\x00\x0a\x21\x00\x14") == (0, 20)
    assert mqtt.read_connack(b"\x00\x87\x00") == (0x87, 65_535)


@pytest.mark.parametrize(
    "text", ["errors=5%", "2.0:errors", "2.0:errors=many", "2.0:errors=200%", "2.0:heat=1"]
)
def test_a_fault_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--fault"):
        with_faults(World(), (text,))


def test_a_faulty_version_is_slower_and_errs_more() -> None:
    world = with_faults(World(requests=100), ("2:errors=5%", "2:latency=1.5", "2:drift=0.4"))
    windows = Windows(world, seed=3)

    def many(version: str) -> tuple[float, float, float]:
        made: list[DeploymentWindow] = [windows.window("digits", "a" * 64, version, 1.0) for _ in range(500)]
        requests = sum(w.requests for w in made)
        errors = sum(w.errors for w in made)
        total = sum(w.infer_ms.total for w in made)
        return (
            errors / requests,
            total / requests,
            sum(w.metrics["drift_psi"].total for w in made) / len(made),
        )

    (few, fast, still), (more, slow, drifted) = many("1"), many("2")
    assert few < 0.004 < 0.04 < more < 0.06
    assert slow / fast == pytest.approx(1.5, rel=0.05)
    assert drifted / still == pytest.approx(8, rel=0.2)


@pytest.mark.proof
def test_a_share_of_devices_has_drifted_and_tells_so_in_every_run() -> None:
    windows = Windows(World(drifting=0.05), seed=3)
    drifting = [name for n in range(2000) if windows.drifts(name := f"sim-{n:06}")]
    assert len(drifting) / 2000 == pytest.approx(0.05, abs=0.02)
    assert drifting == [
        n for m in range(2000) if Windows(World(drifting=0.05), seed=9).drifts(n := f"sim-{m:06}")
    ]
    moved, well = (windows.window("d", "a" * 64, "1", 1.0, drifts=drifts) for drifts in (True, False))
    assert moved.drift["inputs/x"] > 0.2 > well.drift["inputs/x"]
    assert moved.metrics["drift_psi"].mean == pytest.approx(moved.drift["inputs/x"], abs=1e-4)
    assert (bool(moved.anomalies), well.anomalies) == (True, {})
    assert sum(moved.inputs["x"].counts) == 10 * moved.requests
    assert msgspec.json.decode(msgspec.json.encode(moved), type=DeploymentWindow) == moved


def test_without_a_word_of_drift_windows_are_as_small_as_before() -> None:
    plain = Windows(World(), seed=3).window("d", "a" * 64, "1", 1.0)
    assert (plain.inputs, plain.drift, plain.anomalies) == ({}, {}, {})


@pytest.mark.parametrize("text", ["much", "120%", "-1"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--drift"):
        share(click.Context(simulate), click.Option(["--drift"]), text)


def test_levels_of_devices_differ() -> None:
    windows = Windows(World(), seed=random.randint(0, 9))
    assert len({windows.level() for _ in range(10)}) == 10


def test_virtual_devices_join_report_update_and_come_back_as_they_were(running: Service) -> None:
    client = running.client()
    for version in ("1.0", "2.0"):
        [checked] = publishing.check(client, [make_bundle(running.folder / version, version)])
        publishing.publish(client, checked, running.state / "publisher", lambda _: None)
    quick = ("--window", "0.5s", "--fetch", "0s", "--probation", "0s", "--state", str(running.folder / "sim"))
    made = running.simulated(8, *quick, "--fault", "2.0:install=100%")
    wait_until(
        lambda: sum(bool(d.telemetry.windows) or d.online for d in client.devices()) == 8, "all are there"
    )
    started = {"gates": ("install_failures < 50%",), "soak": "0s", "stages": "100%", "holdback": "0"}

    def ended(release: str) -> str:
        wait_until(
            lambda: client.start(api.NewRollout(release=release, to="all", **started)).rollout, release
        )
        number = client.rollouts()[0].id
        wait_until(lambda: client.rollout(number).status != "running", f"{release} has ended")
        return client.rollout(number).status

    assert ended("digits@1.0") == "completed"
    assert ended("digits@2.0") != "completed", "no device can install it"
    made.terminate()
    told = json.loads(made.communicate(timeout=40)[0])
    assert told["reports_sent"] == told["reports_acknowledged"] > 0
    assert (told["updates"], told["installs_failed"], told["orders_refused"]) == (8, 8, 0)
    again = json.loads(running.simulated(8, *quick, "--duration", "1s").communicate(timeout=40)[0])
    assert (again["enrolled"], again["updates"], again["orders_refused"]) == (0, 0, 0)
    assert {found.deployments["digits"].runs for found in client.devices()} == {"digits@1.0"}
    client.close()
