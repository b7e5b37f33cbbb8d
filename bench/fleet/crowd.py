"""A database as it is after N devices have enrolled and reported for an hour, written straight into the tables.

Only for what is measured in the tables (ticks, plans, pages): everything that comes over the network is made by
`edgekit fleet simulate`, which does not know them.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from sqlalchemy import insert

from edgekit.sketch import of
from edgekit.wire.messages import Boot, DeploymentReport, DeploymentWindow, Moments, Report, Reported
from edgekit.wire.states import AgentState
from fleet.rules.sums import BLOCK, Recent
from fleet.server import schema
from fleet.server.database import Database

NONCE = "0" * 16
OLD, NEW = "a" * 64, "b" * 64
WINDOW_S = 60.0
PROFILES = ("raspberry-pi-5", "raspberry-pi-4", "x86-64-v3", "raspberry-pi-3")
_AT_ONCE = 5_000


def name(number: int) -> str:
    return f"sim-{number:06}"


def profile_of(number: int) -> str:
    """Half of the devices are of the first profile, then a quarter, …"""
    return PROFILES[min(len(PROFILES) - 1, (number & -number).bit_length() - 1 if number else 0)]


def window(digest: str, requests: int = 60, errors: int = 0, ms: float = 8.0) -> DeploymentWindow:
    spread = [ms * (0.9 + 0.02 * (at % 11)) for at in range(requests)]
    times = of(spread)
    return DeploymentWindow(
        "digits",
        digest,
        requests,
        errors,
        infer_ms=times,
        request_ms=times,
        metrics={"drift_psi": Moments(1, 0.05)},
    )


def report(number: int, seq: int, ended: float, digest: str = OLD) -> Report:
    started = datetime.fromtimestamp(ended - WINDOW_S, UTC)
    boot = Boot(1, 2, NONCE)
    ms = 6.0 + number % 17 * 0.3
    return Report(name(number), boot, seq, started, WINDOW_S, True, (window(digest, ms=ms),))


def reported(number: int, seq: int, counter: int, digest: str = OLD) -> Reported:
    version = "1" if digest == OLD else "2"
    at_rest = DeploymentReport(AgentState.IDLE, digest, digest, digest, "digits", version, memory_mb=60.0)
    return Reported(
        device=name(number),
        boot=Boot(1, 2, NONCE),
        seq=seq,
        order_counter=counter,
        deployments={"digits": at_rest},
        profile=profile_of(number),
        isa=("asimd", "fp16"),
        engines={"onnxruntime": "1.22.0", "litert": "2.1.0"},
        agent_version="0.1.0",
        bundle_format=1,
        free_bytes=10**10,
        free_memory_mb=2000.0,
    )


def fill(database: Database, count: int, now: float) -> None:
    """Two releases of `digits`, and devices that run the first."""
    bundle = {
        "name": "digits", "length": 10_000_000, "engine": "onnxruntime", "engine_versions": ">=1", "format": 1,
        "published_at": now,
    }  # fmt: skip
    with database.begin() as connection:
        connection.execute(
            insert(schema.releases),
            [{"name": "digits", "version": version, "published_at": now} for version in ("1", "2")],
        )
        connection.execute(
            insert(schema.bundles),
            [
                bundle | {"sha256": sha256_of(digest, profile), "version": version, "profile": profile}
                for digest, version in ((OLD, "1"), (NEW, "2"))
                for profile in PROFILES
            ],
        )
    for start in range(0, count, _AT_ONCE):
        _fill(database, range(start, min(count, start + _AT_ONCE)), now)
    if database.is_postgresql:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")


def sha256_of(digest: str, profile: str) -> str:
    """Each profile has a bundle of its own."""
    return digest[:-1] + str(PROFILES.index(profile))


def _fill(database: Database, numbers: Sequence[int], now: float) -> None:
    with database.begin() as connection:
        connection.execute(insert(schema.devices), [_device(number, now) for number in numbers])
        connection.execute(
            insert(schema.desired),
            [
                {
                    "device": name(number),
                    "deployment": "digits",
                    "sha256": sha256_of(OLD, profile_of(number)),
                    "because": "assignment digits@1",
                    "set_at": now,
                }
                for number in numbers
            ],
        )
        connection.execute(insert(schema.totals), [_total(number) for number in numbers])


def _device(number: int, now: float) -> dict[str, object]:
    digest = sha256_of(OLD, profile_of(number))
    return {
        "id": name(number),
        "labels": msgspec.json.encode({"site": f"site-{number % 500:03}"}).decode(),
        "deployments": '["digits"]',
        "created_at": now,
        "enrolment": 1,
        "profile": profile_of(number),
        "is_confirmed": True,
        "credential_hash": "0" * 64,
        "last_report_at": now - 10,
        "last_seen_at": now - 10,
        "window_s": WINDOW_S,
        "is_online": True,
        "incarnation": 2,
        "nonce": NONCE,
        "reported_seq": 1,
        "reported": msgspec.json.encode(reported(number, 1, 0, digest)).decode(),
    }


def _total(number: int) -> dict[str, object]:
    recent = Recent()
    one = window(sha256_of(OLD, profile_of(number)), ms=6.0 + number % 17 * 0.3)
    for _ in range(2):
        recent = recent.grown(one)
    # The sums of an hour have the bins of a minute, with larger counts.
    older = msgspec.structs.replace(recent.newer, windows=BLOCK, requests=BLOCK * one.requests)
    return {
        "device": name(number),
        "deployment": "digits",
        "digest": one.digest,
        "windows": BLOCK + 2,
        "requests": (BLOCK + 2) * one.requests,
        "errors": 0,
        "infer_ms": msgspec.json.encode(one.infer_ms).decode(),
        "recent": msgspec.json.encode(Recent(older, recent.newer)).decode(),
    }
