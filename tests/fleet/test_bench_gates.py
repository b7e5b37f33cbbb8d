"""The benchmark of the gates decides like the product: what it takes short cuts by gives the same numbers."""

import numpy as np
import pytest

from bench.fleet.play import Play, Wanted
from bench.fleet.through import through
from bench.fleet.world import Release
from fleet.rules import judge
from fleet.rules.machine import advance
from fleet.rules.rollout import Tick

GATES = ("error_rate <= control + 0.5%", "latency_p95 <= 1.1 * control")
WANTED = Wanted(80, GATES, "24,100%", soak=6, look=3)


@pytest.mark.parametrize(
    "release", [Release(), Release(errors=0.05, crashing=0.3), Release(hostile="accuses")]
)
def test_columns_say_what_records_say(release: Release) -> None:
    played = Play(WANTED, release, 7, is_fast=False)
    gates = judge.with_always(played.world.spec.gates)
    looks = 0

    def compare() -> None:
        nonlocal looks
        looks += 1
        records, columns = played.evidence(), played.columns()
        table, other = judge.tables.of(gates, records), judge.tables.of(gates, columns)
        left, right = table.read(records), other.read(columns)
        np.testing.assert_allclose(left.matrix, right.matrix, rtol=1e-9)
        assert table.names(left.flag("is_canary")) == other.names(right.flag("is_canary"))
        one, two = (advance(played.world, Tick(seen), played.now())[0] for seen in (records, columns))
        assert (one.status, one.stage, one.verdicts) == (two.status, two.stage, two.verdicts)

    played.on_look = compare
    played.run()
    assert looks >= 2


@pytest.mark.parametrize(
    ("release", "status"),
    [(Release(), "completed"), (Release(slower=2.5), "rolling_back"), (Release(crashing=0.4), "paused")],
)
def test_the_tables_come_to_the_same_verdicts_as_the_play(release: Release, status: str) -> None:
    gates = ("error_rate <= control + 5%", "latency_p95 <= 1.5 * control")
    ended, looks = through(Wanted(40, gates, "24,100%", holdback="6", soak=12), release, 3)
    assert looks >= 3
    assert ended == status
