"""How far what a deployment meets and gives has moved from its bundle's reference, window by window.

Pure: windows in, windows with their drift out. Needs no numpy.

What is *now* is judged on the newest windows, as few as say something: at least `LEAST_WINDOWS` with traffic, and as many
more as it takes until their values are worth enough (`edgekit.drift`). What holds *over the day* is judged on all windows
that are remembered, up to `MOST_BLOCKS` blocks of `LONGEST_BLOCK` windows, a day and more at one a minute: mornings alone
may be far from the reference, and the day as a whole is not. The metric `drift_psi`, which gates and alerts go by, is the
lesser of the two, of the input that moved most; `drift` of a window is what is now.

Always true
 1. Memory is bounded: blocks are drawn together as they become many, and the oldest go.
 2. What is not known is not said, and an old figure is not repeated for ever; a window without traffic says nothing.
 3. Another bundle begins anew.
"""

from collections.abc import Iterable, Mapping

import msgspec
from msgspec.structs import replace

from edgekit import drift
from edgekit.manifest import Histogram, Reference, Sha256
from edgekit.wire.messages import MAX_METRICS, DeploymentWindow, Moments

METRIC = "drift_psi"
# Half an hour at a window a minute: what passes sooner is no drift, and fewer blocks cannot tell how alike they are.
LEAST_WINDOWS = 30
MOST_BLOCKS = 32
# Windows in a block: 32 of them are more than a day at a window a minute.
LONGEST_BLOCK = 64
DAY_WINDOWS = 1440
# A figure is repeated for so many times the windows that it is from.
_REPEATED = 4
SECTIONS = ("inputs", "outputs", "confidence")


class Span(msgspec.Struct, frozen=True):
    """Windows with traffic, one after the other, in blocks of `each`; of the newest block there are `filled`."""

    blocks: tuple[tuple[int, ...], ...] = ()
    each: int = 1
    filled: int = 0
    windows: int = 0

    def grown(self, counts: tuple[int, ...]) -> "Span":
        """With one more window. Raises: ValueError if it has other bins."""
        if self.blocks and self.filled < self.each:
            *before, newest = self.blocks
            both = tuple(a + b for a, b in zip(newest, counts, strict=True))
            return Span((*before, both), self.each, self.filled + 1, self.windows + 1)
        if len(self.blocks) < MOST_BLOCKS:
            return Span((*self.blocks, counts), self.each, 1, self.windows + 1)
        if self.each < LONGEST_BLOCK:
            return self._coarser().grown(counts)
        return Span((*self.blocks[1:], counts), self.each, 1, self.windows + 1 - self.each)

    def _coarser(self) -> "Span":
        """Each two blocks as one."""
        pairs = tuple(
            tuple(a + b for a, b in zip(one, other, strict=True))
            for one, other in zip(self.blocks[::2], self.blocks[1::2], strict=True)
        )
        return Span(pairs, 2 * self.each, 2 * self.each, self.windows)


class Level(msgspec.Struct, frozen=True):
    """What is known of one thing: its index now and over the day, None where that is not known. `windows` is how many
    the newest span has so far.
    """

    now: float | None = None
    day: float | None = None
    windows: int = 0

    @property
    def lasting(self) -> float | None:
        return None if self.now is None or self.day is None else min(self.now, self.day)


class Track(msgspec.Struct, frozen=True):
    """What is remembered of one thing: the windows since the figure `now`, which is from `of` windows, and all of a day."""

    newest: Span = Span()
    day: Span = Span()
    now: float | None = None
    of: int = 0

    def grown(self, reference: Histogram, counts: tuple[int, ...]) -> "Track":
        newest, day = self.newest.grown(counts), self.day.grown(counts)
        # A block that is not full yet says little more than the last look did.
        if newest.windows >= LEAST_WINDOWS and newest.filled == newest.each:
            found = drift.measured(reference, newest.blocks)
            if found is not None and found.is_known:
                return Track(Span(), day, found.index, newest.windows)
        is_stale = newest.windows > _REPEATED * max(self.of, LEAST_WINDOWS)
        return Track(newest, day, None if is_stale else self.now, self.of)

    def level(self, reference: Histogram) -> Level:
        # Once it covers a day, what comes every day is no noise: blocks count no less for following each other.
        day = drift.measured(reference, self.day.blocks, is_serial=self.day.windows < DAY_WINDOWS)
        is_known = day is not None and day.is_known and self.day.windows >= LEAST_WINDOWS
        return Level(self.now, day.index if day is not None and is_known else None, self.newest.windows)


class Tracks:
    """The tracks of every deployment's bundle, by `SECTION/LABEL`."""

    def __init__(self) -> None:
        self._digests: dict[str, Sha256] = {}
        self._tracks: dict[str, dict[str, Track]] = {}
        self.levels: dict[str, dict[str, Level]] = {}

    def judged(
        self, windows: Iterable[DeploymentWindow], references: Mapping[Sha256, Reference]
    ) -> tuple[DeploymentWindow, ...]:
        """The windows, with the drift of those whose bundle is loaded."""
        return tuple(
            self._judge(window, references[window.digest])
            if window.digest is not None and window.digest in references
            else window
            for window in windows
        )

    def _judge(self, window: DeploymentWindow, reference: Reference) -> DeploymentWindow:
        assert window.digest is not None
        name = window.deployment
        if self._digests.get(name) != window.digest:
            self._digests[name] = window.digest
            self._tracks[name], self.levels[name] = {}, {}
        if not window.requests:
            return window
        tracks, levels = self._tracks[name], self.levels[name]
        for label, known, counts in _pairs(reference, window):
            tracks[label] = tracks.get(label, Track()).grown(known, counts)
            levels[label] = tracks[label].level(known)
        now = {label: round(level.now, 4) for label, level in levels.items() if level.now is not None}
        lasting = [
            level.lasting
            for label, level in levels.items()
            if label.startswith("inputs/") and level.lasting is not None
        ]
        metrics = dict(window.metrics)
        if lasting and len(metrics) < MAX_METRICS:
            metrics[METRIC] = Moments(1, round(max(lasting), 4))
        return replace(window, drift=now, metrics=metrics)


def _pairs(
    reference: Reference, window: DeploymentWindow
) -> Iterable[tuple[str, Histogram, tuple[int, ...]]]:
    """Each thing that has both, with traffic in it: its label, the reference's histogram, the window's counts."""
    for section in SECTIONS:
        known: Mapping[str, Histogram] = getattr(reference, section) or {}
        found: Mapping[str, Histogram] = getattr(window, section)
        for label, one in found.items():
            if label in known and len(one.counts) == len(known[label].counts) and any(one.counts):
                yield f"{section}/{label}", known[label], tuple(one.counts)


def prometheus(levels: Mapping[str, Mapping[str, Level]]) -> str:
    """What is now, in Prometheus' text format; what is not known has no sample."""
    lines = [
        "# HELP edgekit_drift_psi Population stability index against the bundle's reference, newest windows.",
        "# TYPE edgekit_drift_psi gauge",
    ]
    for deployment, known in levels.items():
        lines += [
            f'edgekit_drift_psi{{deployment="{deployment}",of="{_escaped(label)}"}} {level.now:.4g}'
            for label, level in known.items()
            if level.now is not None
        ]
    return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
