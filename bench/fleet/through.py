"""The same play through the real tables: ingest takes every report, the controller ticks, and both must agree.

    python -m bench.fleet.through [--runs 5] [--seed 1]

The fast play (`play`) decides on sums of its own, thousands of rollouts in an hour. Here each of its windows is also a
report that `ingest.take_in` decodes and stores in a database, each of its words a `reported` or `status` message, and a
`Controller` without a broker reads the rows (`Watched.evidence`) and steps the rollout. After every look the stored
rollout must be where the played one is, with the same verdict of every gate.
"""

import argparse
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
from sqlalchemy import insert

from bench.fleet.play import NEW, OLD, WINDOW_S, Play, Wanted
from bench.fleet.world import OFFSET, Release
from edgekit.sketch import Sketch
from edgekit.wire import topics
from edgekit.wire.messages import Boot, DeploymentReport, DeploymentWindow, Report, Reported, Status, encode
from edgekit.wire.states import AgentState
from fleet.publish import make_key
from fleet.rules.rollout import Rollout
from fleet.server import changes, ingest, schema
from fleet.server.clock import Clock, Now, same
from fleet.server.controller import Controller
from fleet.server.database import Database, sqlite_url
from fleet.server.inbox import Message
from fleet.server.link import Link
from fleet.server.store import audit, rollouts
from fleet.server.store.orders import Issuer

# A whole number of windows, so that a stage opens at the edge of one; reports come a little after the tick's own time.
_BEGAN = 30_000_000 * WINDOW_S
_REPORTS_S, _TICK_S = 0.5, 0.25
_BOOT = Boot(1, 2, "0" * 16)


class DisagreedError(Exception):
    """The tables came to another verdict than the play."""


class Through(Play):
    """A play that tells the tables everything, and compares after every look."""

    def __init__(self, wanted: Wanted, release: Release, seed: int, database: Database, folder: Path) -> None:
        super().__init__(wanted, release, seed)
        self._database = database
        self._issuer = Issuer("fleet-1", make_key(folder / "order.key"))
        link = SimpleNamespace(is_connected=False, connected_since=_BEGAN - 3600.0)
        clock = Clock(lambda: _BEGAN, lambda: _BEGAN)
        self._controller = Controller(database, self._issuer, cast("Link", link), clock)
        assert self._controller.follow()
        self._seqs = 0
        self._was_up = self.fleet.is_up()
        self.looks = 0
        self._enrol()
        for at, window in enumerate(self.fleet.log, 1):
            self._report(at, window, np.zeros(wanted.n, bool))
        self._leave(~self._was_up)
        with database.begin() as connection:
            began = rollouts.moment(self._at().steady)
            planned = Rollout(1, self.world.spec, self.world.members, began)
            changes.begin(connection, self._issuer, planned, now=self._at(), who=audit.FLEET)
        self.on_window = self._tell
        self.on_look = self._look

    def close(self) -> None:
        self._controller.stop()

    def _at(self, offset_s: float = _TICK_S) -> Now:
        return same(_BEGAN + self.fleet.now * WINDOW_S + offset_s)

    def _enrol(self) -> None:
        bundle = {
            "name": "m", "profile": "p0", "length": 10, "engine": "onnxruntime", "engine_versions": ">=1", "format": 1,
            "published_at": _BEGAN,
        }  # fmt: skip
        row = {
            "labels": "{}", "deployments": '["m"]', "created_at": _BEGAN, "enrolment": 1, "is_confirmed": True, "credential_hash": "0" * 64,
            "window_s": WINDOW_S, "is_online": True,
        }  # fmt: skip
        with self._database.begin() as connection:
            versions = ((OLD, "1"), (NEW, "2"))
            connection.execute(
                insert(schema.bundles), [bundle | {"sha256": s, "version": v} for s, v in versions]
            )
            devices = [
                row | {"id": name, "profile": f"p{profile}"}
                for name, profile in zip(self.names, self.fleet.profile.tolist(), strict=True)
            ]
            connection.execute(insert(schema.devices), devices)

    def _report(self, ended: int, window: tuple[np.ndarray, ...], has_moved: np.ndarray) -> None:
        """Window `ended - 1`, of every device that was up in it."""
        requests, errors, bins = window
        started = datetime.fromtimestamp(_BEGAN + (ended - 1) * WINDOW_S + _REPORTS_S, UTC)
        batch = []
        for i in np.nonzero(requests >= 0)[0].tolist():
            self._seqs += 1
            index, counts = np.unique(bins[i][bins[i] > -OFFSET], return_counts=True)
            times = Sketch(dict(zip(index.tolist(), counts.tolist(), strict=True)), 0, 1.0, 1e12)
            own = DeploymentWindow(
                "m", NEW if has_moved[i] else OLD, int(requests[i]), int(errors[i]), infer_ms=times
            )
            report = Report(self.names[i], _BOOT, self._seqs, started, WINDOW_S, True, (own,))
            batch.append(Message(topics.of(self.names[i], topics.TELEMETRY), encode(report)))
        self._take(batch, same(_BEGAN + ended * WINDOW_S + _REPORTS_S))

    def _take(self, batch: list[Message], now: Now) -> None:
        taken = ingest.take_in(self._database, batch, now)
        if taken.dropped:
            raise DisagreedError(f"dropped: {dict(taken.dropped)}")

    def _tell(self) -> None:
        """The newest window, and what devices say of themselves."""
        now = self._at(_REPORTS_S)
        up = self.fleet.is_up()
        self._report(self.fleet.now, self.fleet.log[-1], self.fleet.moved_at >= 0)
        self._leave(self._was_up & ~up)
        self._was_up = up
        batch = []
        with self._database.read() as connection:
            members = rollouts.get(connection, 1).members
        for i, name in enumerate(self.names):
            if up[i]:
                batch.append(self._said(name, members[name].order_counter, bool(self.fleet.moved_at[i] >= 0)))
        self._take(batch, now)

    def _leave(self, which: np.ndarray) -> None:
        """Last wills."""
        now = self._at(_REPORTS_S)
        names = [self.names[i] for i in np.nonzero(which)[0].tolist()]
        will = encode(Status(False, _BOOT))
        self._take([Message(topics.of(name, topics.STATUS), will, now.steady) for name in names], now)

    def _said(self, name: str, counter: int, has_moved: bool) -> Message:  # a fact
        self._seqs += 1
        at_rest = DeploymentReport(AgentState.IDLE, NEW, NEW, NEW)
        fetching = DeploymentReport(AgentState.FETCH, OLD, OLD, NEW if counter else OLD)
        reported = Reported(
            device=name, boot=_BOOT, seq=self._seqs, order_counter=counter,
            deployments={"m": at_rest if has_moved else fetching}, profile=f"p{self.fleet.profile[self.place[name]]}",
            isa=(), engines={"onnxruntime": "1.2"}, agent_version="1", bundle_format=1, free_bytes=10**10,
        )  # fmt: skip
        return Message(topics.of(name, topics.REPORTED), encode(reported))

    def _look(self) -> None:
        """The controller judges what the tables hold; then the play judges, and both must say the same."""
        self._compare("before the look")
        self._controller.tick(self._at())
        self.looks += 1

    def _compare(self, when: str) -> None:
        with self._database.read() as connection:
            stored = rollouts.get(connection, 1)
        played = self.world
        mine = (played.status, played.stage, [(v.gate, v.outcome, v.words) for v in played.verdicts])
        theirs = (stored.status, stored.stage, [(v.gate, v.outcome, v.words) for v in stored.verdicts])
        if mine != theirs:
            raise DisagreedError(f"window {self.fleet.now}, {when}:\n played {mine}\n tables {theirs}")

    def finish(self) -> None:
        """After the run: the last look's verdicts, too."""
        self._compare("at the end")


def through(wanted: Wanted, release: Release, seed: int) -> tuple[str, int]:
    """How a rollout through the tables ended, and how many looks agreed. Raises: DisagreedError."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(sqlite_url(Path(folder)))
        try:
            played = Through(wanted, release, seed, database, Path(folder))
            ending = played.run()
            played.finish()
            played.close()
            return ending.status, played.looks
        finally:
            database.close()


def main() -> None:
    from bench.fleet.gates import CASES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2, help="of each case")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="first-24")
    args = parser.parse_args()
    for case in CASES:
        if args.only in case.name:
            for k in range(args.runs):
                status, looks = through(case.wanted, case.release, args.seed * 100_000 + k)
                print(f"{case.name}: {status} after {looks} looks, the same in both", flush=True)


if __name__ == "__main__":
    main()
