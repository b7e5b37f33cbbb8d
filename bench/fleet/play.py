"""A whole rollout through the real rules: `start`, `advance` and everything below them, on devices of `world`.

Only the tables are left out: the evidence is what ingest keeps for a rollout (`fleet.rules.evidence`), summed here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np

from bench.fleet.columns import Columns, ColumnTables, Past, matrix
from bench.fleet.peers import Peers
from bench.fleet.world import PAST_WINDOWS, Fleet, Release, Tally
from edgekit.wire.messages import DeploymentReport
from edgekit.wire.states import AgentState, FleetState
from fleet.rules import gates, judge, stages
from fleet.rules.evalues import Floats
from fleet.rules.evidence import (
    COLD_WINDOWS,
    COLD_WINDOWS_LATENCY,
    SILENT_WINDOWS,
    Arm,
    DeviceEvidence,
    StageEvidence,
    Sums,
)
from fleet.rules.machine import advance, start
from fleet.rules.members import Member, Word, is_settled
from fleet.rules.rollout import Due, Effect, Heard, Move, Ordered, Rollout, Spec, Status, Tick
from fleet.rules.sums import BLOCK
from fleet.rules.table import Flags

# The rules read what is played as columns, beside records.
judge.tables = ColumnTables()
T0 = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW_S = 60.0
# The usual judges look every five windows of a first stage.
PEERS_LOOK = 5
NEW, OLD = "a" * 64, "b" * 64


@dataclass(frozen=True)
class Wanted:
    """A rollout as an operator asks for it."""

    n: int
    gates: tuple[str, ...]
    cut: str = ""
    holdback: str = ""
    soak: int = 30  # windows
    look: int = 1  # windows between ticks; a controller ticks every second
    last_stage: int | None = None  # stop watching once this stage (from 0) has passed


@dataclass(frozen=True)
class Ending:
    """How it went: the machine's status, the stage it was in, the devices ordered by then, windows passed, and why.

    `peers` would have stopped it in the soak of its first stage (as far as it lasted).
    """

    status: str
    stage: int
    exposed: int
    windows: int
    reason: str
    share_of_touched: float
    peers: tuple[str, ...] = ()


class Play:
    """One rollout on one fleet."""

    def __init__(self, wanted: Wanted, release: Release, seed: int, *, is_fast: bool = True) -> None:
        self.wanted = wanted
        self.is_fast = is_fast
        self.on_look: Callable[[], None] = lambda: None
        self.on_window: Callable[[], None] = lambda: None
        self.fleet = Fleet(wanted.n, release, np.random.default_rng(seed))
        for _ in range(PAST_WINDOWS):
            self.fleet.step()
        n = wanted.n
        self.names = [f"d{i:06d}" for i in range(n)]
        self.place = {name: i for i, name in enumerate(self.names)}
        self.last_heard = np.full(n, -(10**6))
        self.arrives = np.full(n, -1)
        self.has_failed = np.zeros(n, bool)
        self.counter = 0
        self.seq = 0
        self.order: dict[str, int] = {}
        self.old_past: dict[int, Sums] = {}
        self.past = Past(n)
        self.world = self._planned(seed)

    def _planned(self, seed: int) -> Rollout:
        wanted, label = self.wanted, f"r{seed}"
        profiles = {name: f"p{self.fleet.profile[i]}" for i, name in enumerate(self.names)}
        held_count = stages.parse_holdback(wanted.holdback, wanted.n)
        held = stages.choose_held(profiles, label, held_count)
        cut = stages.parse(wanted.cut, wanted.n)
        if held_count:
            cut = (*cut, stages.Stage(1.0, "held", is_closing=True))
        spec = Spec(
            "m", "2", "m", "all", cut, tuple(gates.parse(text) for text in wanted.gates),
            wanted.soak * WINDOW_S, "rollback", 600.0, 1e9,
        )  # fmt: skip
        up = self.fleet.is_up()
        members = {
            name: Member(
                name,
                profiles[name],
                stages.key(label, name),
                NEW,
                OLD,
                "m@1",
                is_held=name in held,
                online_since=T0 if up[i] else None,
            )
            for i, name in enumerate(self.names)
        }
        return Rollout(id=1, spec=spec, members=members, created_at=self.now())

    def now(self) -> datetime:
        return T0 + timedelta(seconds=self.fleet.now * WINDOW_S)

    def run(self) -> Ending:
        for at, window in enumerate(self.fleet.log, 1):
            self.last_heard[window[0] >= 0] = at
        self._carry_out(*start(self.world, self.now()))
        first = self.fleet.now
        peers = Peers()
        limit = first + 40 * self.wanted.soak
        while self.world.status is Status.RUNNING and self.fleet.now < limit:
            stage = self.world.stage
            if self.wanted.last_stage is not None and stage > self.wanted.last_stage:
                break
            for _ in range(self.wanted.look):
                self._window()
                self._say()
            passed = self.fleet.now - first
            if stage == 0 and passed <= self.wanted.soak and passed % PEERS_LOOK == 0:
                peers.look(self.evidence())
            self.on_look()
            seen = self.columns() if self.is_fast else self.evidence()
            self._carry_out(*advance(self.world, Tick(seen), self.now()))
        ordered = [m for m in self.world.members.values() if m.order_counter]
        touched = np.array([self.fleet.touched[self.place[m.device]] for m in ordered])
        status = self.world.status
        return Ending(
            "passed" if status is Status.RUNNING else status.value,
            self.world.stage,
            len(ordered),
            self.fleet.now - first,
            self.world.reason,
            float(touched.sum() / max(1, self.fleet.touched.sum())),
            tuple(sorted(peers.stopped)),
        )

    def _carry_out(self, world: Rollout, effects: list[Effect]) -> None:
        opened = world.stage != self.world.stage or not self.counter
        self.world = world
        if opened:
            self._open()
        while effects:
            for effect in effects:
                if isinstance(effect, Move) and effect.sha256 == NEW:
                    self._order(effect.device)
            is_moving = any(isinstance(effect, Move) and effect.sha256 == NEW for effect in effects)
            effects = []
            if is_moving:
                self.world, effects = advance(self.world, Due(), self.now())

    def _order(self, device: str) -> None:
        self.counter += 1
        self.world, _ = advance(self.world, Ordered(device, self.counter), self.now())
        self.arrives[self.place[device]] = 0
        # What it does on the new release is another sum.
        self.tally.forget(self.place[device])
        self.seen[self.place[device]] = 0
        self.order[device] = len(self.order)

    def _open(self) -> None:
        """Sums begin anew; what devices did before is their past, and who is silent now is at risk of nothing."""
        fleet, n = self.fleet, self.wanted.n
        self.opened = fleet.now
        self.tally = Tally(n)
        self.fell_silent: dict[int, float] = {}
        self.at_risk = self.last_heard >= fleet.now - SILENT_WINDOWS
        self.seen = np.zeros(n, int)
        past = self._recent()
        renewed = (fleet.moved_at < 0) & (past.windows > 0)
        self.past.renew(past, renewed)
        if self.is_fast and self.opened > PAST_WINDOWS:
            return  # records are for the peers' looks, in the first stage
        sketches = past.sketches()
        for i in np.nonzero(renewed)[0].tolist():
            counts = int(past.windows[i]), int(past.requests[i]), int(past.errors[i]), int(past.warm[i])
            self.old_past[i] = Sums(*counts, sketches[i])

    def _recent(self) -> Tally:
        """What ingest keeps of the newest windows: a whole block and what came after it (`fleet.rules.sums`)."""
        heard = sum((window[0] >= 0 for window in self.fleet.log), np.zeros(self.wanted.n, int))
        left = np.where(heard < BLOCK, heard, BLOCK + heard % BLOCK)
        past = Tally(self.wanted.n)
        for window in reversed(self.fleet.log):
            counted = (window[0] >= 0) & (left > 0)
            past.add(window, counted, counted)
            left -= counted
            if not left.any():
                break
        return past

    def _window(self) -> None:
        fleet = self.fleet
        up = fleet.is_up()
        # An ordered device that is up fetches for one to three windows, then runs it.
        waiting = (self.arrives >= 0) & (fleet.moved_at < 0) & up
        self.arrives[waiting & (self.arrives == 0)] = fleet.now + fleet.chance.integers(1, 4)
        ready = waiting & (self.arrives > 0) & (self.arrives <= fleet.now)
        if fleet.release.failing:
            self.has_failed |= ready & (fleet.chance.random(len(ready)) < fleet.release.failing)
        fleet.move(np.nonzero(ready & ~self.has_failed)[0])
        fleet.step()
        window = fleet.log[-1]
        heard = window[0] >= 0
        since = np.maximum(self.last_heard, self.opened)
        for i in np.nonzero(fleet.now - since > SILENT_WINDOWS)[0]:
            self.fell_silent.setdefault(int(i), float(since[i] + SILENT_WINDOWS) * WINDOW_S)
        self.last_heard[heard] = fleet.now
        self.seen += heard & ((self.arrives < 0) | (fleet.moved_at >= 0))
        self.tally.add(window, self.seen > COLD_WINDOWS, self.seen > COLD_WINDOWS_LATENCY)
        self.on_window()

    def _say(self) -> None:
        """What devices report of themselves: connections, and the release loaded and committed."""
        up = self.fleet.is_up()
        words = []
        self.seq += 1
        for i, (name, member) in enumerate(self.world.members.items()):
            if not up[i]:
                if member.is_online:
                    words.append(Word(name, is_online=False))
            elif not member.is_online or (member.order_counter and not is_settled(member)):
                words.append(self._word(name, member, has_moved=self.fleet.moved_at[i] >= 0))
        if words:
            self._carry_out(*advance(self.world, Heard(tuple(words)), self.now()))

    def _word(self, name: str, member: Member, *, has_moved: bool) -> Word:
        at_rest = DeploymentReport(AgentState.IDLE, NEW, NEW, NEW)
        fetching = DeploymentReport(AgentState.FETCH, OLD, OLD, NEW)
        if self.has_failed[self.place[name]]:
            fetching = DeploymentReport(AgentState.IDLE, OLD, OLD, NEW, reason="its self-test failed")
        return Word(
            name,
            is_online=True,
            seen=(1, 1, self.seq),
            order_counter=member.order_counter,
            deployments={"m": at_rest if has_moved else fetching} if member.order_counter else {},
        )

    def columns(self) -> Columns:
        """The evidence as columns at once: the same numbers as those of `evidence`."""
        nan, n = np.nan, self.wanted.n
        members = [self.world.members[name] for name in self.names]
        gates = judge.with_always(self.world.spec.gates)
        common: dict[str, Floats | Flags] = {
            "is_canary": np.array([bool(m.order_counter) for m in members]),
            "at_risk": self.at_risk,
            "is_excused": np.zeros(n),
            "last_report_at": self.last_heard * WINDOW_S,
            "patience_s": np.full(n, SILENT_WINDOWS * WINDOW_S),
            "fell_silent_at": np.array([self.fell_silent.get(i, nan) for i in range(n)]),
            "notified_at": np.array([nan if (at := _notified(m)) is None else at for m in members]),
            "window_s": np.full(n, WINDOW_S),
            "installed": np.array([-1 if (has := _installed(m)) is None else has for m in members]),
            "order": np.array([self.order.get(name, np.inf) for name in self.names]),
            "is_online": np.array([m.is_online for m in members]),
            "is_fresh": np.array([self._is_fresh(m) for m in members]),
            "profile": self.fleet.profile,
        }
        opened, now = self.opened * WINDOW_S, self.fleet.now * WINDOW_S
        return Columns(
            now=now,
            judged_from=opened,
            matrix=matrix(gates, common, self.tally, self.past),
            names=tuple(self.names),
            profiles=tuple(f"p{at}" for at in range(int(self.fleet.profile.max()) + 1)),
        )

    def _is_fresh(self, member: Member) -> bool:
        return member.stage is None or member.stage == self.world.stage

    def evidence(self) -> StageEvidence:
        """Records, as the tables would give them."""
        now = self.fleet.now * WINDOW_S
        tally, sketches = self.tally, self.tally.sketches()
        devices = {}
        for name, member in self.world.members.items():
            i = self.place[name]
            is_canary = bool(member.order_counter)
            devices[name] = DeviceEvidence(
                device=name,
                profile=member.profile,
                arm=Arm.CANARY if is_canary else Arm.CONTROL,
                at_risk=bool(self.at_risk[i]),
                windows=int(tally.windows[i]),
                requests=int(tally.requests[i]),
                errors=int(tally.errors[i]),
                warm_windows=int(tally.warm[i]),
                sketch=sketches[i],
                past=self.old_past.get(i),
                last_report_at=float(self.last_heard[i]) * WINDOW_S,
                fell_silent_at=self.fell_silent.get(i),
                notified_at=_notified(member),
                installed=_installed(member),
                order=self.order.get(name),
                is_online=member.is_online,
                is_fresh=self._is_fresh(member),
            )
        opened = self.opened * WINDOW_S
        return StageEvidence(devices, now=now, judged_from=opened, heard_since=0.0)


def _notified(member: Member) -> float | None:
    return (member.notified_at - T0).total_seconds() if member.notified_at else None


def _installed(member: Member) -> bool | None:
    return True if member.state is FleetState.SUCCEEDED else False if is_settled(member) else None


def play(wanted: Wanted, release: Release, seed: int) -> Ending:
    return Play(wanted, release, seed).run()


def encode(ending: Ending) -> bytes:
    return msgspec.json.encode(ending)
