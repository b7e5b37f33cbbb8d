"""Mixed precision as a repair: how many of the worst layers to leave in float next, and when to stop.

Pure: tries so far in, the next one out.

Always true
 1. The number of float layers doubles until the contract holds, then halves the gap to the smallest set that holds.
 2. No number is tried twice, and never more than `MAX_TRIES` are.
 3. What cannot win is not repaired: leaving layers in float does not make an int8 candidate faster.
"""

from collections.abc import Sequence

import msgspec

from converters.judge.select import Ratio
from converters.quantize.sensitivity import LayerError

MAX_TRIES = 6
# An int8 candidate that does not take clearly less time than what already holds is not worth a repair.
WORTH = 0.95
# Layers named to a person.
NAMED = 3


class Try(msgspec.Struct, frozen=True):
    """`floats` layers were left in float; whether the contract then held on the search half."""

    floats: int
    holds: bool


def next_count(tries: Sequence[Try], layers: int, max_tries: int = MAX_TRIES) -> int | None:
    """How many of the `layers` worst to leave in float next; None when there is nothing to gain.

    All layers in float would be the float candidate, so at most `layers` - 1 are tried.
    """
    if len(tries) >= max_tries:
        return None
    failing = max((item.floats for item in tries if not item.holds), default=0)
    holding = min((item.floats for item in tries if item.holds), default=None)
    if holding is None:
        wanted = max(1, 2 * failing)
        # The last step goes as far as there are layers.
        wanted = min(wanted, layers - 1)
        return wanted if wanted > failing else None
    # With noise a smaller set may hold where a larger failed; the gap below what holds is what remains.
    below = max((item.floats for item in tries if not item.holds and item.floats < holding), default=0)
    return (below + holding) // 2 if holding - below > 1 else None


def is_worth(ratio: Ratio | None) -> bool:
    """`ratio` is the plain int8 candidate's time over the fastest that holds; None where nothing can be measured."""
    return ratio is None or ratio.median < WORTH


def floats(layers: Sequence[LayerError], count: int) -> tuple[str, ...]:
    """The names of the `count` worst layers; `layers` come worst first."""
    return tuple(layer.name for layer in layers[:count])


def named(layers: Sequence[LayerError], count: int = NAMED) -> str:
    """The worst layers for a person, e.g. `conv2d.5 (Conv, 3.1 dB)`, or `conv2d.5 (Conv, KL 0.220)`."""
    return ", ".join(f"{layer.name} ({layer.op_type}, {_harm(layer)})" for layer in layers[:count])


def _harm(layer: LayerError) -> str:
    return f"{layer.snr_db:.1f} dB" if layer.divergence is None else f"KL {layer.divergence:.3f}"
