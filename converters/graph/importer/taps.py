"""Pooling by maximum along one axis after the other, of slices only.

LiteRT has a kernel for the plain two-dimensional pool alone. Of a dilated one, one with three axes, or one whose edges
differ, its converter makes a STABLEHLO_REDUCE_WINDOW that no quantizer takes (ai-edge-quantizer 0.10) and no
accelerator runs, or pads with minus infinity, which no range of integers holds. A maximum over a window is the maximum
along its axes in turn, and along one axis that of as many strided slices as the kernel has entries.

Always true
 1. No value is made up: at an edge, where some entries of a window lie outside, others of the same window stand in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def max_along(value: Tensor, axis: int, starts: Sequence[int], kernel: int, dilation: int) -> Tensor:
    """Largest of `kernel` entries, `dilation` apart, from each of `starts`, which may lie outside; each window has an
    entry inside.
    """
    size = value.shape[axis]
    windows = [
        [place for place in range(start, start + kernel * dilation, dilation) if 0 <= place < size]
        for start in starts
    ]
    # The k-th tap of a window, or its last one where an edge leaves it fewer.
    taps = [
        [window[min(tap, len(window) - 1)] for window in windows] for tap in range(max(map(len, windows)))
    ]
    result = _picked(value, axis, taps[0])
    for tap in taps[1:]:
        result = torch.maximum(result, _picked(value, axis, tap))
    return result


def _picked(value: Tensor, axis: int, places: Sequence[int]) -> Tensor:
    """Entries along an axis: runs of equal steps, each by one slice."""
    runs: list[list[int]] = []
    for place in places:
        run = runs[-1] if runs else []
        if (len(run) == 1 and place > run[0]) or (len(run) > 1 and place - run[-1] == run[1] - run[0]):
            run.append(place)
        else:
            runs.append([place])
    parts = []
    for run in runs:
        step = run[1] - run[0] if len(run) > 1 else 1
        index = [slice(None)] * value.dim()
        index[axis] = slice(run[0], run[-1] + 1, step)
        parts.append(value[tuple(index)])
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)
