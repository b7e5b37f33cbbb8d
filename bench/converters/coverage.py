"""How often the judge is wrong: a candidate whose true drop exceeds the limit shipped, a good one refused.

Synthetic builds of known truth, judged by the code that judges real ones (`converters.judge.accuracy`): the outputs of a
source and of its candidates on a judged half are drawn from a distribution whose true drop is set, the candidates one by
one. A build ships wrongly if any of its candidates whose true drop lies just beyond the limit (by a hundredth of it) is
met: the worst case, since further beyond it is easier to tell. One at a quarter of the limit should be met; it is refused
where the samples cannot show it.

    python bench/converters/coverage.py [--builds 2000] [--jobs 2] [--only top1]

prints a table, in some twenty minutes on two free cores. Not covered here: search and repairs, which look at the other half of the data only.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from converters.judge import accuracy, metrics
from converters.judge.metrics import Metric

Random = np.random.Generator
SIZES = (100, 300, 600, 1000, 2000, 5000)
# Seeds of the draws: builds share them in turn, as the weights of a seed are made once.
SEEDS = 3
END = -1


@dataclass(frozen=True)
class World:
    """Draws a build's judged half: labels, the source's digest, and of each candidate one whose true drop is `drop`."""

    metric: Metric
    draw: Callable[[Random, int, int, float], tuple[np.ndarray, dict, list[dict], np.ndarray | None]]
    limit: float = 0.01
    candidates: tuple[int, ...] = (1, 4)
    sizes: tuple[int, ...] = SIZES


def flips(random: Random, count: int, many: int, drop: float, helpful: float = 0.0) -> tuple:
    """Answers of a source that is right on four of five; a share of the right ones turn wrong, of the wrong ones right."""
    source = random.random(count) < 0.8
    found = []
    for _ in range(many):
        roll = random.random(count)
        # Harm on the right ones less help on the wrong ones is the drop.
        found.append(
            {"value": np.where(source, roll >= (drop + helpful) / 0.8, roll < helpful / 0.2).astype(int)}
        )
    return np.ones(count, int), {"value": source.astype(int)}, found, None


def both_ways(random: Random, count: int, many: int, drop: float) -> tuple:
    """As many helpful flips as twice the drop, and harmful ones beyond them."""
    return flips(random, count, many, drop, helpful=2 * drop)


def sequences(random: Random, count: int, many: int, drop: float) -> tuple:
    """Frames of sequences of ten to thirty: a candidate is wrong on a stretch of a few sequences, a quarter to all of it.
    `count` sequences.
    """
    lengths = random.integers(10, 31, count)
    sequence = np.repeat(np.arange(count), lengths)
    place = np.concatenate([np.arange(length) for length in lengths]) / np.repeat(lengths, lengths)
    found = []
    for _ in range(many):
        share = random.uniform(0.25, 1.0, count)
        bad = random.random(count) < drop / 0.625
        wrong = np.repeat(bad, lengths) & (place < np.repeat(share, lengths))
        # A stretch is rounded up to whole frames, which a frame's half a sequence takes back on average.
        found.append({"value": (~wrong).astype(int)})
    return np.ones(len(sequence), int), {"value": np.ones(len(sequence), int)}, found, sequence


def texts(random: Random, count: int, many: int, drop: float) -> tuple:
    """Lines of 8 to 24 characters. The source errs on a tenth of them; a candidate spoils whole runs of others, most a
    character or two, some half the line.
    """
    lengths = random.integers(8, 25, count)
    place = np.arange(24)
    labels = np.where(place < lengths[:, None], 1, END)

    def spoiled(ids: np.ndarray, share: float) -> np.ndarray:
        """Runs of wrong characters whose expected number over all characters is `share`."""
        is_long = random.random(count) < 0.1
        run = np.where(is_long, lengths // 2, random.integers(1, 3, count))
        # Expected characters of a run: 0.1 x about 7.75 and 0.9 x 1.5.
        expected = 0.1 * np.mean(np.arange(8, 25) // 2) + 0.9 * 1.5
        bad = random.random(count) < share * 16 / expected
        return np.where(bad[:, None] & (place < run[:, None]), 2, ids)

    source = spoiled(labels, 0.015)
    found = []
    for _ in range(many):
        # What the source spoiled already cannot be spoiled again: those lines are left out of the share.
        free = np.flatnonzero((source == labels).all(axis=1))
        ids = source.copy()
        made = spoiled(labels, drop * count / max(len(free), 1))
        ids[free] = made[free]
        found.append({"value": ids})
    return labels, {"value": source}, found, None


def edits(digest: metrics.Outputs, labels: np.ndarray) -> np.ndarray:
    """As the built-in `cer` counts where characters are replaced only, at a thousandth of the time."""
    return np.stack([(digest["value"] != labels).sum(axis=1), (labels != END).sum(axis=1)], axis=1).astype(
        float
    )


def rare(random: Random, count: int, many: int, drop: float) -> tuple:
    """Two classes, a fifth positive; the source finds nine of ten and one false for nine true. A candidate loses some."""
    labels = (random.random(count) < 0.2).astype(int)
    source = np.where(labels, random.random(count) < 0.9, random.random(count) < 0.025).astype(int)
    # F1 = 2 TP / (found + labelled), in shares of all samples: TP .18, found .20, labelled .2.
    wanted = 0.9 - drop
    lost = (0.36 - wanted * 0.4) / (2 - wanted)
    found = []
    for _ in range(many):
        gone = (source == 1) & (labels == 1) & (random.random(count) < lost / 0.18)
        found.append({"value": np.where(gone, 0, source)})
    return labels, {"value": source}, found, None


def values(random: Random, count: int, many: int, drop: float) -> tuple:
    """Errors of a source of 1 on average squares, some samples three times harder; a candidate adds noise, more where
    it is hard.
    """
    scale = np.where(random.random(count) < 0.1, 3.0, np.sqrt((1 - 0.1 * 9) / 0.9))
    labels = np.zeros((count, 1))
    source = random.normal(0, scale)[:, None]
    # Squares of the source's errors and of the noise add up.
    noise = np.sqrt((1 + drop) ** 2 - 1)
    found = [{"value": source + random.normal(0, noise * scale)[:, None]} for _ in range(many)]
    return labels, {"value": source}, found, None


CER = Metric("cer", parts=edits, higher_is_better=False, is_bounded=False)
WORLDS = {
    "top1": World(metrics.BUILT_IN["top1"], flips, candidates=(1, 8)),
    "top1, limit .02": World(metrics.BUILT_IN["top1"], flips, 0.02, sizes=(300, 1000)),
    "top1, flips both ways": World(metrics.BUILT_IN["top1"], both_ways, sizes=(1000, 5000)),
    "top1 over sequences": World(metrics.BUILT_IN["top1"], sequences, sizes=(300, 1000)),
    "cer": World(CER, texts, sizes=(100, 300)),
    "f1": World(metrics.BUILT_IN["f1"], rare, 0.02, candidates=(1,), sizes=(300, 1000)),
    "rmse": World(metrics.BUILT_IN["rmse"], values, 0.02, sizes=(100, 300, 1000)),
}


@dataclass(frozen=True)
class Row:
    world: str
    count: int
    candidates: int


def met(row: Row, random: Random, seed: int, share: float, many: int) -> Iterator[bool]:
    """Of one build: whether each of `many` candidates that lose a `share` of the limit is met, judged as of the row's number."""
    world = WORLDS[row.world]
    labels, source, candidates, sequence = world.draw(random, row.count, many, world.limit * share)
    drawn = accuracy.resampled(world.metric, source, labels, sequence=sequence, seed=seed)
    known = world.metric.of_digest(source, labels)
    for candidate in candidates:
        if world.metric.drop(known, world.metric.of_digest(candidate, labels)) > world.limit:
            # Missed whatever the bound is, which half of the bad ones are: that time is saved.
            yield False
            continue
        told = accuracy.compare(
            world.metric,
            source,
            candidate,
            labels,
            sequence=sequence,
            seed=seed,
            drawn=drawn,
            judged=row.candidates,
        )
        judgement = accuracy.judge(told, world.limit, is_bounded=world.metric.is_bounded)
        yield judgement.verdict == "met"


def simulated(row: Row, builds: int, start: int) -> tuple[float, float]:
    """Shares of builds that ship what they must not, and that refuse a good candidate."""
    random = np.random.default_rng((start, row.count, row.candidates))
    wrong = refused = 0
    for build in range(builds):
        seed = build * SEEDS // builds
        wrong += any(met(row, random, seed, 1.01, row.candidates))
        refused += not all(met(row, random, seed, 0.25, 1))
    return wrong / builds, refused / builds


def rows(only: str) -> list[Row]:
    return [
        Row(name, count, candidates)
        for name, world in WORLDS.items()
        if only in name
        for count in world.sizes
        for candidates in world.candidates
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--builds", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="")
    flags = parser.parse_args()
    began = time.monotonic()
    print(
        "| metric | limit | candidates | judged samples | shipped beyond the limit | refused at a quarter |"
    )
    print("|---|---|---|---|---|---|")
    with ProcessPoolExecutor(flags.jobs) as pool:
        listed = rows(flags.only)
        found = pool.map(simulated, listed, [flags.builds] * len(listed), range(len(listed)))
        for row, (wrong, refused) in zip(listed, found, strict=True):
            limit = WORLDS[row.world].limit
            print(
                f"| {row.world.split(', limit')[0]} | {limit:g} | {row.candidates} | {row.count} | {wrong:.1%} |"
                f" {refused:.0%} |",
                flush=True,
            )
    print(f"{flags.builds} builds a row, {time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
