"""What the controller keeps of a rollout from tick to tick, so that a tick reads only what is new.

Always true
 1. It is a cache of the database, and thrown away when the rollout's row says that somebody else changed it, when a
    transaction failed, and when another service may have been the controller meanwhile.
 2. The evidence of a device about which nothing is new is the same object as before.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
from sqlalchemy import Connection

from edgekit.wire.states import FleetState
from fleet.rules import sums as rules
from fleet.rules.evidence import USUAL_WINDOW_S, Arm, DeviceEvidence, StageEvidence
from fleet.rules.members import BAD, Member, Word
from fleet.rules.rollout import Rollout
from fleet.rules.sums import Deaf, StageSums, Work
from fleet.server.store import devices, members, telemetry
from fleet.server.store.devices import DeviceRow, Newest


@dataclass
class Watched:
    """A rollout under way with its members, what is known of their devices, and the open stage's evidence."""

    rollout: Rollout
    revision: int
    rows: dict[str, Newest] = field(default_factory=dict)
    _sums: dict[str, StageSums] = field(default_factory=dict)
    # Of each deployment that moves, in the spec's order.
    _evidence: list[dict[str, DeviceEvidence]] = field(default_factory=list)
    # Device → its place among all that were ordered.
    _places: dict[str, int] = field(default_factory=dict)
    _built_for: Rollout | None = None

    @classmethod
    def load(cls, connection: Connection, rollout: Rollout, revision: int) -> "Watched":
        """All there is, of all members."""
        found = members.of(connection, rollout.id)
        made = cls(msgspec.structs.replace(rollout, members=found), revision)
        made.rows = {row.id: row for row in devices.newest(connection, sorted(found))}
        return made

    def read(self, connection: Connection, news: Iterable[str]) -> list[str]:
        """Read what is new of these devices; those that are members."""
        concerned = sorted(device for device in news if device in self.rollout.members)
        if not concerned:
            return []
        found = {row.id: row for row in devices.newest(connection, concerned)}
        for device in concerned:
            if device in found:
                self.rows[device] = found[device]
            else:
                self.rows.pop(device, None)
        if self._built_for is not None and self._is_same_stage(self.rollout):
            fresh = telemetry.sums_of(connection, {self.rollout.id: self.rollout.stage}, concerned)
            self._sums |= {device: sums for (_, device), sums in fresh.items()}
        return concerned

    def words(self, connection: Connection, concerned: Iterable[str]) -> tuple[Word, ...]:
        """What these devices say that their members have not heard yet."""
        quiet: list[Word] = []
        speaking: list[str] = []
        for device in concerned:
            row, member = self.rows.get(device), self.rollout.members[device]
            if row is None:
                continue
            if (row.enrolment, row.incarnation, row.reported_seq) > member.seen:
                speaking.append(device)
            elif bool(row.is_online) != member.is_online:
                quiet.append(Word(device, is_online=row.is_online))
        return (*quiet, *(_word(row) for row in devices.some(connection, speaking)))

    def evidence(
        self, connection: Connection, concerned: Iterable[str], *, deaf: Deaf, heard_since: float, now: float
    ) -> StageEvidence:
        """The open stage's evidence, of all members; worked out anew for `concerned`, and whose member has changed."""
        rollout = self.rollout
        assert rollout.judged_from is not None
        before = self._built_for
        if before is None or not self._is_same_stage(rollout):
            found = telemetry.sums_of(connection, {rollout.id: rollout.stage})
            self._sums = {device: sums for (_, device), sums in found.items()}
            self._evidence = [{} for _ in rollout.spec.deployments]
            changed = set(rollout.members)
        else:
            changed = {*concerned, *(m.device for m in rollout.roster.changed_since(before.members))}
            for device in rollout.roster.gone_since(before.members):
                self._forget(device)
            changed &= rollout.members.keys()
        self._place(changed)
        judged_from = rollout.judged_from.timestamp()
        for device in changed:
            self._look(rollout.members[device], judged_from, deaf)
        self._built_for = rollout
        first, *others = self._evidence
        beside = dict(zip(rollout.spec.deployments[1:], others, strict=True))
        return StageEvidence(first, now, judged_from, heard_since, beside)

    def _forget(self, device: str) -> None:
        for evidence in self._evidence:
            evidence.pop(device, None)

    def _is_same_stage(self, other: Rollout) -> bool:
        assert self._built_for is not None
        return (self._built_for.stage, self._built_for.judged_from) == (other.stage, other.judged_from)

    def _place(self, changed: Iterable[str]) -> None:
        """Give the newly ordered their places, after those that have one."""
        found = (self.rollout.members[device] for device in changed if device not in self._places)
        new = [(m.ordered_at, m.key, m.device) for m in found if m.order_counter and m.ordered_at]
        for _, _, device in sorted(new):
            self._places[device] = len(self._places)

    def _look(self, member: Member, judged_from: float, deaf: Deaf) -> None:
        """Its records, one in each deployment; a device without a release to stay on is control in none."""
        row = self.rows.get(member.device)
        if row is None or (not member.order_counter and any(part.previous is None for part in member.parts)):
            self._forget(member.device)
            return
        sums = self._sums.get(member.device)
        if sums is None or sums.judged_from != judged_from:
            last = row.last_report_at
            at_risk = last is not None and rules.is_at_risk(last, judged_from, row.window_s, deaf)
            sums = rules.opened(judged_from, [Work()] * len(self._evidence), is_at_risk=at_risk)
        for evidence, work in zip(self._evidence, sums.works, strict=True):
            evidence[member.device] = self._evidence_of(member, row, sums, work)

    def _evidence_of(self, member: Member, row: Newest, sums: StageSums, work: Work) -> DeviceEvidence:
        arm = Arm.CANARY if member.order_counter else Arm.CONTROL
        side = work.moved if arm is Arm.CANARY else work.stayed
        return DeviceEvidence(
            device=member.device,
            profile=member.profile,
            arm=arm,
            at_risk=sums.is_at_risk,
            windows=side.sums.windows,
            requests=side.sums.requests,
            errors=side.sums.errors,
            warm_windows=side.sums.warm_windows,
            sketch=side.sums.infer_ms,
            metrics=side.sums.metrics,
            past=work.past,
            since=side.since,
            last_report_at=row.last_report_at or 0.0,
            window_s=row.window_s or USUAL_WINDOW_S,
            fell_silent_at=sums.fell_silent_at,
            notified_at=member.notified_at.timestamp() if member.notified_at else None,
            installed=_installed(member),
            reason=member.reason,
            order=self._places.get(member.device),
            is_excused=member.is_excused,
            is_online=member.is_online,
            is_fresh=member.stage is None or member.stage == self.rollout.stage,
        )


def _installed(member: Member) -> bool | None:
    if member.state is FleetState.SUCCEEDED:
        return True
    return False if member.state in BAD else None


def _word(row: DeviceRow) -> Word:
    seen = (row.enrolment, row.incarnation, row.reported_seq)
    reported = devices.reported_of(row)
    if reported is None:
        return Word(row.id, is_online=row.is_online)
    return Word(
        row.id,
        is_online=row.is_online,
        seen=seen,
        order_counter=reported.order_counter,
        deployments=reported.deployments,
        refused=reported.refused,
    )
