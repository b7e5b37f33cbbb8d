"""How far what a deployment meets and gives has moved from its bundle's reference, window by window.

Pure: windows in, windows with their drift out. Needs no numpy.

What is *now* is judged on the newest windows, as few as say something: 30 to 32 blocks of 1, 2, 4, … windows, the shortest of
these spans whose values are worth enough (`edgekit.drift`). Each span ends with the newest window but for a part of its
last block, so a shift is seen as soon as it fills the shortest of them, whenever it began. What holds *over the day* is
judged on all that is remembered, at least a day: mornings alone may be far from the reference, and the day as a whole is
not. Nobody who has seen a morning only can tell sunrise from drift, so before a device has been on for a day with a bundle
nothing is said over the day. The metric `drift_psi`, which gates and alerts go by, is the lesser of the two, of the input
that moved most; `drift` of a window is what is now.

Always true
 1. Memory is bounded: blocks are drawn together as they grow old, and the oldest go.
 2. What is not known is not said, and what is now is not from long ago; a window without traffic says nothing.
 3. Another bundle begins anew. What is kept over a restart (`Tracks.kept`) goes on as if nothing had been between.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from edgekit import drift
from edgekit.manifest import Histogram, Reference, Sha256
from edgekit.wire.messages import MAX_METRICS, DeploymentWindow, Moments

METRIC = "drift_psi"
# Half an hour at a window a minute: what passes sooner is no drift, and fewer blocks cannot tell how alike they are.
LEAST_BLOCKS, MOST_BLOCKS = 30, 32
DAY_S = 86_400.0
# Windows of a second would need more to remember a day; theirs is some hours shorter.
_MOST_LEVELS = 12
# Blocks of a day, with fewer of which nobody can tell how they differ.
_LEAST_OF_DAY = 16
# Spans of one length whose worth is remembered: with the one that is looked at an odd number.
USUAL = 4
# Of the values of a span at least such a share is to be from its newer half.
_NEWER_SHARE = 0.25
SECTIONS = ("inputs", "outputs", "confidence")
Counts = tuple[int, ...]


def levels_of(length_s: float) -> int:
    """Of how many lengths blocks have to be, that `MOST_BLOCKS` of the longest are a day of windows of so many seconds."""
    levels = 1
    while MOST_BLOCKS * 2 ** (levels - 1) * length_s < DAY_S and levels < _MOST_LEVELS:
        levels += 1
    return levels


class Block(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The counts of windows with traffic that follow each other; `began_s` is when, since the first window did."""

    began_s: float
    counts: Counts


class Span(msgspec.Struct, frozen=True):
    """Windows with traffic, one after the other, the newest last: `levels[j]` are blocks of 2^j of them, those of a higher
    level older than those of a lower one. `seen` counts all there ever were.
    """

    levels: tuple[tuple[Block, ...], ...] = ((),)
    seen: int = 0

    def grown(self, window: Block, most_levels: int) -> "Span":
        """With one more window. Raises: ValueError if it has other bins."""
        levels = [list(level) for level in self.levels]
        levels[0].append(window)
        at = 0
        # The oldest two become one of the next level. All but the first keep half: the levels below have the other half.
        while len(levels[at]) > _kept(at) + 1:
            oldest = _together(levels[at][:2])
            del levels[at][:2]
            if (at := at + 1) == most_levels:
                break
            if at == len(levels):
                levels.append([])
            levels[at].append(oldest)
        return Span(tuple(map(tuple, levels)), self.seen + 1)

    @property
    def bins(self) -> int:
        """How many bins its blocks have; 0 before the first."""
        return next((len(level[0].counts) for level in self.levels if level), 0)

    @property
    def windows(self) -> int:
        """How many are remembered."""
        return sum(len(level) << at for at, level in enumerate(self.levels))

    def blocks(self, level: int) -> tuple[Block, ...]:
        """The newest blocks of 2^`level` windows, at most `MOST_BLOCKS`; windows after the last whole one are left out."""
        found: list[Block] = list(self.levels[level]) if level < len(self.levels) else []
        part: list[Block] = []
        filled = 0
        for at in range(min(level, len(self.levels)) - 1, -1, -1):
            for block in self.levels[at]:
                part.append(block)
                filled += 1 << at
                if filled == 1 << level:
                    found.append(_together(part))
                    part, filled = [], 0
        return tuple(found[-MOST_BLOCKS:])


def coarsest(windows: int, levels: int) -> int:
    """The lowest level at which `Span.blocks` has all that is remembered, or all but a few of the oldest."""
    return min((windows // (MOST_BLOCKS + 2)).bit_length(), levels - 1)


def _kept(level: int) -> int:
    return MOST_BLOCKS // 2 if level else MOST_BLOCKS


def _together(blocks: Sequence[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    return Block(blocks[0].began_s, tuple(map(sum, zip(*(block.counts for block in blocks), strict=True))))


class Level(msgspec.Struct, frozen=True):
    """What is known of one thing: its index now and over the day, None where that is not known. `windows` is how many with
    traffic there were, `seen_s` how long the device has been on with the bundle.
    """

    now: float | None = None
    day: float | None = None
    windows: int = 0
    seen_s: float = 0.0

    @property
    def lasting(self) -> float | None:
        """What holds over the day, and has not passed."""
        return self.day if self.now is None or self.day is None else min(self.now, self.day)


class _Look(msgspec.Struct, frozen=True):
    """What a span of one level said, after so many blocks of it; `usual` is what a value was worth in the spans before it,
    none of which has a window of another.
    """

    blocks: int = -1
    index: float | None = None
    usual: tuple[float, ...] = ()


class Track(msgspec.Struct, frozen=True):
    """What is remembered of one thing, and the last look at each of its levels, and at the day."""

    span: Span = Span()
    looks: tuple[_Look, ...] = ()
    day: _Look = _Look()
    level: Level = Level()

    def grown(
        self, reference: Histogram, counts: Counts, *, began_s: float, ended_s: float, levels: int
    ) -> "Track":
        """With one more window, from and to so many seconds after the first one began."""
        # Should windows be longer now, blocks that are there stay.
        span = self.span.grown(Block(began_s, counts), max(levels, len(self.span.levels)))
        looks = list(self.looks)
        now = None
        for at in range(len(span.levels)):
            if at == len(looks):
                looks.append(_Look())
            # A block that is not full yet says little more than the last look did; a whole span is looked at to learn.
            count = span.seen >> at
            if looks[at].blocks != count and (now is None or count % MOST_BLOCKS == 0):
                looks[at] = _looked(looks[at], reference, span, at)
            if now is None:
                now = looks[at].index
        at = coarsest(span.windows, len(span.levels))
        day = self.day
        if day.blocks != span.seen >> at:
            day = _Look(span.seen >> at, whole(reference, span.blocks(at), ended_s))
        return Track(span, tuple(looks), day, Level(now, day.index, span.seen, ended_s))


def _looked(before: _Look, reference: Histogram, span: Span, level: int) -> _Look:
    blocks, count = span.blocks(level), span.seen >> level
    found = newest(reference, blocks, before.usual)
    usual = before.usual
    if found is not None and count % MOST_BLOCKS == 0:
        usual = (*usual, found.each)[-USUAL:]
    return _Look(count, _known(found), usual)


def newest(reference: Histogram, blocks: Sequence[Block], usual: Sequence[float]) -> drift.Measured | None:
    """What these blocks say of now, None where they are too few or from long ago; `usual` as for `drift.measured`."""
    counts = [block.counts for block in blocks]
    newer = sum(map(sum, counts[len(counts) // 2 :]))
    if len(counts) < LEAST_BLOCKS or newer < _NEWER_SHARE * sum(map(sum, counts)):
        return None
    return drift.measured(reference, counts, usual=usual)


def whole(reference: Histogram, blocks: Sequence[Block], ended_s: float) -> float | None:
    """The index over as many whole days as these blocks go back, to the nearest block; None where they do not say it."""
    if len(blocks) < _LEAST_OF_DAY:
        return None
    days = (ended_s - blocks[0].began_s) // DAY_S
    first_s = ended_s - days * DAY_S * (1 + 0.5 / len(blocks))
    counts = [block.counts for block in blocks if block.began_s >= first_s]
    return _known(drift.measured(reference, counts, "day")) if days else None


def _known(found: drift.Measured | None) -> float | None:
    return found.index if found is not None and found.is_known else None


class Kept(msgspec.Struct, frozen=True):
    """The tracks of one bundle in one slot, by `SECTION/LABEL`, and how long it is watched."""

    digest: Sha256
    seen_s: float = 0.0
    tracks: dict[str, Track] = {}


class _Deployment:
    """What changes of `Kept`, window by window."""

    def __init__(self, kept: Kept) -> None:
        self.digest = kept.digest
        self.seen_s = kept.seen_s
        self.tracks = dict(kept.tracks)

    def grow(self, reference: Reference, window: DeploymentWindow, length_s: float) -> None:
        began_s, self.seen_s = self.seen_s, self.seen_s + length_s
        if not window.requests:
            return
        levels = levels_of(length_s)
        for label, known, counts in _pairs(reference, window):
            track = self.tracks.get(label, Track())
            # What was kept may be an older agent's, which bounded the reference otherwise.
            track = track if track.span.bins in (0, len(counts)) else Track()
            self.tracks[label] = track.grown(
                known, counts, began_s=began_s, ended_s=self.seen_s, levels=levels
            )


class Tracks:
    """The tracks of every deployment's bundle, from those that were kept on."""

    def __init__(self, kept: Mapping[str, Kept] | None = None) -> None:
        self._deployments = {name: _Deployment(one) for name, one in (kept or {}).items()}

    @property
    def kept(self) -> dict[str, Kept]:
        """All that is remembered now, by deployment."""
        return {
            name: Kept(one.digest, one.seen_s, dict(one.tracks)) for name, one in self._deployments.items()
        }

    @property
    def levels(self) -> dict[str, dict[str, Level]]:
        """By deployment and `SECTION/LABEL`."""
        return {
            name: {label: track.level for label, track in one.tracks.items()}
            for name, one in self._deployments.items()
        }

    def judged(
        self,
        windows: Iterable[DeploymentWindow],
        references: Mapping[Sha256, Reference],
        length_s: float,
    ) -> tuple[DeploymentWindow, ...]:
        """The windows, which are `length_s` long, with the drift of those whose bundle is loaded."""
        return tuple(
            self._judge(window, references[window.digest], length_s)
            if window.digest is not None and window.digest in references
            else window
            for window in windows
        )

    def _judge(self, window: DeploymentWindow, reference: Reference, length_s: float) -> DeploymentWindow:
        assert window.digest is not None
        one = self._deployments.get(window.deployment)
        if one is None or one.digest != window.digest:
            one = self._deployments[window.deployment] = _Deployment(Kept(window.digest))
        one.grow(reference, window, length_s)
        if not window.requests:
            return window
        levels = {label: track.level for label, track in one.tracks.items()}
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


def _pairs(reference: Reference, window: DeploymentWindow) -> Iterator[tuple[str, Histogram, Counts]]:
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
