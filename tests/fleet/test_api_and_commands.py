"""The REST interface and the commands on top of it, against one running service."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fleet_support import FakeDevice, Service, make_bundle, wait_until
from securesystemslib.signer import CryptoSigner

from edgekit import bundle, evidence
from edgekit.errors import SignatureRefusedError
from edgekit.evidence import BuildEvidence, CandidateEvidence, Figure, Where
from fleet import api
from fleet.tuf.home import Home
from fleet.tuf.ring import Ring

PLACE_VARIABLES = ("EDGEKIT_FLEET", "EDGEKIT_FLEET_URL", "EDGEKIT_FLEET_TOKEN")
GATE = ("--gate", "error_rate < 1%")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("fleet"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def devices(shared: Service) -> Iterator[dict[str, FakeDevice]]:
    """`lab-1` runs, `lab-2` has another profile, `shelf` has not enrolled."""
    made = {}
    with_client = shared.client()
    for name, profile in (("lab-1", "x86-64-v3"), ("lab-2", "raspberry-pi-5")):
        file = with_client.enroll(api.NewDevice(name, ("digits",), {"site": "lab"}))
        made[name] = FakeDevice(file, profile=profile)
        made[name].enrol()
        made[name].connect()
    with_client.enroll(api.NewDevice("shelf", ("digits",), {"site": "lab", "batch": "b7"}))
    wait_until(
        lambda: sum(bool(d.online and d.agent_version) for d in with_client.devices()) == 2, "both are online"
    )
    yield made
    for device in made.values():
        device.close()


@pytest.fixture(scope="module")
def first(shared: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_bundle(tmp_path_factory.mktemp("bundles"), "1.0.0")
    assert edgekit(shared, "publish", path)[0] == 0
    return path


def edgekit(service: Service | None, *arguments: str | Path, **environment: str) -> tuple[int, str, str]:
    place = ["--fleet", str(service.state)] if service else []
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", "fleet", *place, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", **environment},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def asked(service: Service, *arguments: str | Path) -> Any:
    code, out, err = edgekit(service, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def url(service: Service, path: str) -> str:
    return f"http://127.0.0.1:{service.http_port}{path}"


def token(service: Service) -> dict[str, str]:
    text = (service.state / "client.toml").read_text()
    return {"Authorization": f"Bearer {text.split('token = ')[1].strip().strip(chr(34))}"}


def test_which_fleet_is_asked_for(shared: Service, tmp_path: Path) -> None:
    code, _, err = edgekit(None, "devices")
    assert (code, "which fleet?" in err) == (2, True)
    assert edgekit(None, "devices", EDGEKIT_FLEET=str(shared.state))[0] == 0
    bearer = token(shared)["Authorization"].removeprefix("Bearer ")
    assert edgekit(None, "devices", EDGEKIT_FLEET_URL=url(shared, ""), EDGEKIT_FLEET_TOKEN=bearer)[0] == 0
    code, _, err = edgekit(None, "devices", "--fleet", tmp_path)
    assert (code, "'edgekit fleet up --state DIR' writes it" in err) == (2, True)
    (tmp_path / "client.toml").write_text('url = "http://127.0.0.1:1"\ntoken = "x"\n')
    code, _, err = edgekit(None, "devices", "--fleet", tmp_path)
    assert (code, "cannot be reached" in err) == (5, True)


def test_enrolling_writes_a_file_for_its_owner_only_and_never_over_another(
    shared: Service, tmp_path: Path
) -> None:
    out = tmp_path / "d.json"
    words = ("enroll", "new-1", "--label", "site=attic", "--deployment", "digits", "--out", out)
    assert edgekit(shared, *words)[0] == 0
    file = json.loads(out.read_text())
    assert out.stat().st_mode & 0o777 == 0o600
    assert (file["device"], file["labels"], file["deployments"]) == ("new-1", {"site": "attic"}, ["digits"])
    assert edgekit(shared, *words)[0] == 2
    for wrong, said in [
        (("enroll", "a/b", "--deployment", "digits", "--out", tmp_path / "x"), "device"),
        (("enroll", "x", "--deployment", "Digits!", "--out", tmp_path / "x"), "deployments"),
        (("enroll", "x", "--label", "site", "--deployment", "d", "--out", tmp_path / "x"), "write KEY=VALUE"),
        (("enroll", "x", "--label", "profile=y", "--deployment", "d", "--out", tmp_path / "x"), "built in"),
        (("enroll", "x", "--deployment", "d", "--out", tmp_path / "no" / "x"), "there is no such folder"),
    ]:
        code, _, err = edgekit(shared, *wrong)
        assert code in (2, 5)
        assert said in err
        assert not (tmp_path / "x").exists()


def test_publishing_the_same_again_says_so_and_another_under_the_same_version_is_refused(
    shared: Service, first: Path, tmp_path: Path
) -> None:
    code, out, _ = edgekit(shared, "publish", first)
    assert (code, "was published already, nothing changed" in out) == (0, True)
    other = make_bundle(tmp_path, "1.0.0", seed="other")
    code, _, err = edgekit(shared, "publish", other)
    assert (code, "a version never changes" in err) == (5, True)
    releases = asked(shared, "releases")
    assert [(r["name"], r["version"], len(r["bundles"])) for r in releases] == [("digits", "1.0.0", 1)]


def test_one_bad_bundle_stops_the_others_before_anything_is_sent(shared: Service, tmp_path: Path) -> None:
    good, cut = make_bundle(tmp_path, "7.0.0"), make_bundle(tmp_path, "7.0.1")
    cut.write_bytes(cut.read_bytes()[:-10])
    code, _, err = edgekit(shared, "publish", good, cut)
    assert code == 2
    assert "digits-7.0.1" in err
    assert not [r for r in asked(shared, "releases") if r["version"].startswith("7")]
    code, _, err = edgekit(shared, "publish", tmp_path / "none.edgekit")
    assert (code, "there is no such file" in err) == (2, True)


def test_a_bundle_signed_by_a_stranger_is_refused(shared: Service, tmp_path: Path) -> None:
    stranger = Home(Ring(tmp_path / "stranger", lambda: b""))
    (tmp_path / "stranger").mkdir()
    stranger.init(CryptoSigner.generate_ed25519().public_key, datetime.now(UTC))
    bundle = make_bundle(tmp_path, "8.0.0")
    code, _, err = edgekit(shared, "publish", bundle, "--keys", tmp_path / "stranger")
    assert code == 2
    assert "was signed by 0/1 keys" in err
    code, _, err = edgekit(shared, "publish", bundle, "--keys", tmp_path / "none")
    assert (code, "does not exist" in err) == (2, True)
    sha256 = hashlib.sha256(bundle.read_bytes()).hexdigest()
    client = shared.client()
    client.upload(bundle, sha256, lambda _sent: None)
    with pytest.raises(SignatureRefusedError, match="not listed in the fleet's metadata"):
        client.register(api.NewBundle(sha256))


def test_evidence_about_another_bundle_is_refused(shared: Service, tmp_path: Path) -> None:
    path = make_bundle(tmp_path, "8.1.0")
    path.with_name(path.name.replace(".edgekit", ".evidence.json")).write_text("{}")
    code, _, err = edgekit(shared, "publish", path)
    assert (code, "evidence" in err) == (2, True)


def test_a_dry_run_says_who_moves_who_does_not_and_why(
    shared: Service, first: Path, devices: dict[str, FakeDevice]
) -> None:
    assert first
    assert devices
    start = ("rollout", "start", "digits@1.0.0", "--to", "site=lab", *GATE)
    plan = asked(shared, *start, "--dry-run")["plan"]
    assert plan["eligible"] == {"x86-64-v3": ["lab-1"]}
    reasons = {item["device"]: item["reason"] for item in plan["ineligible"]}
    assert reasons == {
        "lab-2": "no bundle for profile raspberry-pi-5 (there is x86-64-v3)",
        "shelf": "has not enrolled yet",
    }
    code, out, _ = edgekit(shared, *start, "--dry-run")
    assert code == 0
    assert "errors per accepted request below 1 %, judged on at least 100 requests" in out
    assert "dry run: nothing was started" in out
    code, _, err = edgekit(shared, "rollout", "start", "digits@1.0.0", "digits@1.0.0=other", *start[3:])
    assert (code, "is not enrolled for deployment other" in err) == (2, True)
    assert asked(shared, "rollout", "list") == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--to": "sight=lab"}, "known labels are batch, device, profile, site"),
        ({"--to": "site lab"}, "^"),
        ({"--to": "device=nobody"}, "no device matches"),
        ({"--to": "device=shelf"}, "has not enrolled yet: 1"),
        ({"--gate": "error_rate < 1"}, "^"),
        ({"--gate": "latency_p95 <= 1.1 * control"}, "could never conclude"),
        ({"--gate": "install_failures < 5% min 20 devices"}, "could never conclude"),
        ({"--gate": "lost < 5%"}, "needs something to be judged by"),
        ({"--stages": "10%"}, "must end with 100%"),
        ({"--soak": "long"}, "is no duration"),
        ({"--holdback": "100%"}, "leaves none to move"),
        ({"--on-violation": "cry"}, "is not one of"),
        ({"--rate": "fast"}, "write orders per time"),
        ({"--window": "22-05"}, "write 22:00-05:00"),
        ({"--window": "22:00-22:05"}, "nobody would ever be told"),
        ({"--time-zone": "Mars/Base"}, "is none that this machine knows"),
        ({"--approve": "4"}, "write numbers from 1 to"),
        ({"--jitter": "1h"}, "more than half of the time that a device has"),
        ({"--site-bandwidth": "0.001kB/s"}, "of 10m that it has in all"),
        ({"--file": "/nowhere/at/all.toml"}, "cannot be read"),
    ],
)
def test_a_rollout_that_cannot_work_is_refused(
    shared: Service, first: Path, devices: dict[str, FakeDevice], changes: dict[str, str], said: str
) -> None:
    assert first
    assert devices
    options = {"--to": "site=lab", "--gate": "error_rate < 1%"} | changes
    words = [word for pair in options.items() for word in pair]
    code, _, err = edgekit(shared, "rollout", "start", "digits@1.0.0", *words)
    assert code == 2
    assert said in err
    assert asked(shared, "rollout", "list") == []


def test_unknown_releases_devices_and_rollouts_are_said(
    shared: Service, devices: dict[str, FakeDevice]
) -> None:
    assert devices
    for words in [
        ("rollout", "start", "digits@9.9", "--to", "all", *GATE),
        ("rollout", "status", "r99"),
        ("rollout", "abort", "x"),
        ("device", "explain", "nobody"),
    ]:
        code, _, err = edgekit(shared, *words)
        assert code == 5
        assert "edgekit fleet" in err
    assert edgekit(shared, "rollout", "start", "digits", "--to", "all", *GATE)[0] == 2


def test_explaining_a_device(shared: Service, devices: dict[str, FakeDevice]) -> None:
    assert devices
    assert "It has not enrolled yet" in edgekit(shared, "device", "explain", "shelf")[1]
    lines = asked(shared, "device", "explain", "lab-1")["lines"]
    assert lines[0].startswith("It is online")
    assert "digits: nothing is ordered." in lines


def test_keys_show_public_halves_only(shared: Service) -> None:
    _, out, _ = edgekit(shared, "keys", "show")
    assert "order" in out
    assert "PRIVATE" not in out


def test_while_frozen_nothing_starts(shared: Service, first: Path, devices: dict[str, FakeDevice]) -> None:
    assert first
    assert devices
    assert edgekit(shared, "freeze", "--reason", "friday")[0] == 0
    code, _, err = edgekit(shared, "rollout", "start", "digits@1.0.0", "--to", "device=lab-1", *GATE)
    assert (code, "the fleet is frozen" in err) == (5, True)
    assert edgekit(shared, "unfreeze")[0] == 0


def test_what_is_blocked_is_ordered_by_no_rollout(
    shared: Service, first: Path, devices: dict[str, FakeDevice]
) -> None:
    assert first
    assert devices
    assert edgekit(shared, "blocked")[1] == "nothing is blocked\n"
    assert edgekit(shared, "block", "digits@1.0.0", "--reason", "counts wrongly")[0] == 0
    [listed] = asked(shared, "blocked")
    assert (listed["subject"], listed["reason"]) == ("digits@1.0.0", "counts wrongly")
    assert "counts wrongly" in edgekit(shared, "blocked")[1]
    code, _, err = edgekit(shared, "rollout", "start", "digits@1.0.0", "--to", "device=lab-1", *GATE)
    assert (code, "is blocked (counts wrongly)" in err) == (5, True)
    assert edgekit(shared, "block", "nonsense")[0] == 2
    assert edgekit(shared, "unblock", "digits@1.0.0")[0] == 0
    assert edgekit(shared, "unblock", "digits@1.0.0")[0] != 0


def test_the_commands_of_a_rollout(shared: Service, first: Path, devices: dict[str, FakeDevice]) -> None:
    assert first
    assert devices
    words = (
        "rollout",
        "start",
        "digits@1.0.0",
        "--to",
        "device=lab-1",
        "--soak",
        "6s",  # the second command must come while the rollout runs, on a busy machine too
        "--stages",
        "100%",
        *GATE,
    )
    started = asked(shared, *words)
    rollout = started["rollout"]["id"]
    code, _, err = edgekit(shared, *words)
    assert (code, f"rollout {rollout} of digits@1.0.0 is running" in err) == (5, True)
    code, out, _ = edgekit(shared, "rollout", "watch", rollout)
    assert code == 0
    assert f"{rollout} completed" in out
    assert "succeeded" in edgekit(shared, "rollout", "status", rollout)[1]
    assert "digits@1.0.0" in edgekit(shared, "devices")[1]
    code, _, err = edgekit(shared, "rollout", "pause", rollout)
    assert (code, "is completed; it cannot pause now" in err) == (5, True)
    code, _, err = edgekit(shared, *words)
    assert (code, "is to run this bundle already" in err) == (2, True)
    assert edgekit(shared, "rollout", "rollback", rollout)[0] == 0
    assert edgekit(shared, "rollout", "watch", rollout)[0] == 5


@pytest.mark.proof
def test_a_rollout_is_a_file_that_starts_another_like_it(
    shared: Service, first: Path, devices: dict[str, FakeDevice], tmp_path: Path
) -> None:
    """It waits for approval all the while, so nobody moves."""
    assert first
    assert devices
    words = (
        "--to",
        "device=lab-1",
        "--stages",
        "100%",
        "--approve",
        "all",
        "--per-site",
        "2",
        "--rate",
        "60/min",
    )
    limits = (*words, "--window", "00:00-24:00", "--finish-by", "2s", *GATE)
    started = asked(shared, "rollout", "start", "digits@1.0.0", *limits)
    rollout = started["rollout"]["id"]
    assert started["rollout"]["awaits"] == 1
    notes = " | ".join(started["plan"]["notes"])
    for told in (
        "60/min",
        "per site",
        "of their own time (UTC",
        f"rollout approve {rollout}",
        "no label 'tz'",
    ):
        assert told in notes
    code, text, _ = edgekit(shared, "rollout", "show", rollout, "--toml")
    assert (code, "per_site = 2" in text, 'windows = ["00:00-24:00"]' in text) == (0, True, True)
    path = tmp_path / "again.toml"
    path.write_text(text)
    queued = asked(shared, "rollout", "start", "--file", path, "--queue", "--finish-by", "1d")["rollout"]
    assert (queued["status"], rollout in queued["reason"]) == ("queued", True)
    assert asked(shared, "rollout", "show", queued["id"]) == asked(shared, "rollout", "show", rollout) | {
        "queue": True, "finish_by": "1d",
    }  # fmt: skip
    wait_until(lambda: shared.client().rollout(rollout).status == "paused", "its time is over")
    code, _, err = edgekit(shared, "rollout", "resume", rollout)
    assert (code, "resume it with --finish-by" in err) == (5, True)
    resumed = asked(shared, "rollout", "resume", rollout, "--finish-by", "1d")
    assert (resumed["status"], resumed["awaits"]) == ("running", 1)
    code, _, err = edgekit(shared, "rollout", "hold", rollout, "--profile", "p")
    assert (code, "has devices of x86-64-v3" in err) == (2, True)
    code, _, err = edgekit(shared, "rollout", "release", rollout, "--profile", "x86-64-v3")
    assert (code, "is not held" in err) == (5, True)
    held = asked(shared, "rollout", "hold", rollout, "--profile", "x86-64-v3")
    assert held["held_profiles"] == ["x86-64-v3"]
    assert asked(shared, "rollout", "abort", queued["id"])["status"] == "aborted"
    assert edgekit(shared, "rollout", "abort", rollout)[0] == 0
    wait_until(lambda: shared.client().rollout(rollout).status == "aborted", "nobody had moved")
    log = asked(shared, "audit", "list")
    assert {f"rollout.{verb}" for verb in ("queue", "resume", "hold", "abort")} <= {e["action"] for e in log}


def test_artifacts_are_for_the_device_that_is_ordered_to_run_them(
    shared: Service, first: Path, devices: dict[str, FakeDevice]
) -> None:
    device = devices["lab-2"]
    sha256 = asked(shared, "releases")[0]["bundles"][0]["sha256"]
    assert device.fetch(sha256).status_code == 404, "it is not ordered to run this"
    assert httpx.get(url(shared, f"/artifacts/{sha256}"), trust_env=False).status_code == 401
    assert (
        httpx.get(url(shared, f"/artifacts/{sha256}"), headers=token(shared), trust_env=False).status_code
        == 401
    )
    assert device.fetch("../../keys/order.key").status_code in (401, 404)
    ordered = devices["lab-1"]
    words = (
        "rollout",
        "start",
        "digits@1.0.0",
        "--to",
        "device=lab-1",
        "--soak",
        "1s",
        "--stages",
        "100%",
        *GATE,
    )
    rollout = asked(shared, *words)["rollout"]["id"]
    whole = ordered.fetch(sha256)
    assert whole.content == first.read_bytes()
    part = ordered.fetch(sha256, Range="bytes=10-19")
    assert (part.status_code, part.content) == (206, first.read_bytes()[10:20])
    edgekit(shared, "rollout", "watch", rollout)


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("POST", "/api/v1/devices", b"{", 400, "usage"),
        ("POST", "/api/v1/devices", b'{"device": "a b"}', 400, "usage"),
        ("POST", "/api/v1/devices", b'{"device": "a", "deployments": []}', 400, "usage"),
        ("POST", "/api/v1/devices", b'{"device": "a", "deployments": ["d"], "lables": {}}', 400, "usage"),
        ("POST", "/api/v1/devices", b" " * (9 << 20), 413, "too-large"),
        ("POST", "/api/v1/bundles", b'{"sha256": "1"}', 400, "usage"),
        ("PUT", "/api/v1/uploads/nonsense", b"x", 404, "not-found"),
        ("PUT", "/api/v1/uploads/" + "0" * 64, b"x", 400, "bundle"),
        ("POST", "/v1/enrol", b'{"device": "lab-1"}', 400, "usage"),
        ("POST", "/api/v1/rollouts/r1/explode", b"", 400, "usage"),
        ("GET", "/api/v1/nothing", b"", 404, "http"),
    ],
)
def test_bad_requests_get_an_error_that_says_what(
    shared: Service, method: str, path: str, content: bytes, status: int, code: str
) -> None:
    answer = httpx.request(method, url(shared, path), content=content, headers=token(shared), trust_env=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert not list((shared.state / "artifacts").glob("*.part"))


def test_the_client_loads_no_server(shared: Service) -> None:
    assert shared
    script = (
        "import sys, fleet.client.cli\n"
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('sqlalchemy', 'fastapi', 'uvicorn', 'alembic', 'paho', 'iotcore', 'cryptography', 'numpy')"
        " or m.startswith(('fleet.server', 'fleet.rules'))])"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_a_bundle_that_an_old_agent_cannot_read_is_not_sent_to_it(
    shared: Service, devices: dict[str, FakeDevice], tmp_path: Path
) -> None:
    assert devices
    assert edgekit(shared, "publish", make_bundle(tmp_path, "9.0.0", bundle_format=2))[0] == 0
    code, _, err = edgekit(shared, "rollout", "start", "digits@9.0.0", "--to", "site=lab", *GATE, "--dry-run")
    assert code == 2
    assert "reads bundle format 1, this is 2; update its agent" in err


def with_status(path: Path, recipe: str, status: str) -> Path:
    """A bundle with evidence beside it that calls it picked or an alternate."""
    figure = Figure(1.0, "measured", Where("a CPU"))
    told = BuildEvidence(
        "digits", "5.0.0", "x86-64-v3", recipe, "top1", figure, figure, figure, figure, {},
        (CandidateEvidence(recipe, status, "why"),),
    )  # fmt: skip
    digest = bundle.sha256_file(path)
    evidence.beside(path).write_bytes(evidence.encode(evidence.statement(path.name, digest, told)))
    return path


def test_a_builds_folder_is_published_with_its_alternates_beside_the_picked_bundles(
    shared: Service, devices: dict[str, FakeDevice], tmp_path: Path
) -> None:
    assert devices
    pick = with_status(make_bundle(tmp_path, "5.0.0"), "litert/static-int8", "picked")
    folder = tmp_path / "alternates" / "onnxruntime-fp32"
    other = with_status(make_bundle(folder, "5.0.0", seed="other"), "onnxruntime/fp32", "alternate")
    code, _, err = edgekit(shared, "publish", other)
    assert code == 5
    assert "an alternate needs the picked bundle first" in err
    code, out, err = edgekit(shared, "publish", tmp_path)
    assert (code, out.count(": published")) == (0, 2), err
    assert "alternate onnxruntime/fp32: published" in out
    code, out, _ = edgekit(shared, "publish", tmp_path)
    assert (code, out.count("was published already")) == (0, 2)

    release = next(found for found in asked(shared, "releases") if found["version"] == "5.0.0")
    assert [row["sha256"] for row in release["bundles"]] == [bundle.sha256_file(pick)]
    assert [(row["alternate"], row["has_evidence"]) for row in release["alternates"]] == [
        ("onnxruntime/fp32", True)
    ]
    code, out, _ = edgekit(shared, "releases")
    assert "alternate" in out
    stored = httpx.get(
        url(shared, f"/api/v1/evidence/{bundle.sha256_file(other)}"), headers=token(shared), trust_env=False
    )
    assert stored.content == evidence.beside(other).read_bytes()
    # Devices get the picked one, whatever lies beside it.
    plan = asked(shared, "rollout", "start", "digits@5.0.0", "--to", "site=lab", *GATE, "--dry-run")
    assert bundle.sha256_file(other) not in json.dumps(plan)


def test_another_alternate_of_the_same_recipe_is_refused(shared: Service, tmp_path: Path) -> None:
    changed = with_status(make_bundle(tmp_path, "5.0.0", seed="changed"), "onnxruntime/fp32", "alternate")
    code, _, err = edgekit(shared, "publish", changed)
    assert (code, "has another alternate of onnxruntime/fp32" in err) == (5, True)


def test_a_folder_without_bundles_is_named(shared: Service, tmp_path: Path) -> None:
    code, _, err = edgekit(shared, "publish", tmp_path)
    assert (code, "there is no bundle in this folder" in err) == (2, True)
