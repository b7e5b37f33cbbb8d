"""If, Loop and Scan: nothing of them is left but what their bodies do to data.

A branch chosen by a constant is inlined; where data chooses, both are computed and one is selected. Loops have a
number of turns that is known at load time and are unrolled; a condition that data decides freezes the state.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from converters.graph.importer.registry import UnsupportedOperatorsError

if TYPE_CHECKING:
    from converters.graph.importer.graph import Builder

# Most turns that a loop is unrolled for.
MAX_TURNS = 512

Attributes = Mapping[str, Any]
Scope = Mapping[str, str]


def choose(builder: "Builder", attributes: Attributes, inputs: Sequence[str], scope: Scope) -> list[str]:
    """If. Raises: UnsupportedOperatorsError where data chooses between results of different shapes or types."""
    condition = builder.number(inputs[0])
    branches = [attributes["then_branch"], attributes["else_branch"]]
    if condition is not None:
        return builder.graph(branches[0 if condition else 1], scope, ())
    results = [builder.graph(branch, scope, ()) for branch in branches]
    chosen: list[str] = []
    for taken, other in zip(*results, strict=True):
        if not {taken, other} <= builder.values.keys():
            raise UnsupportedOperatorsError("If whose condition is computed from data, between sequences")
        left, right = builder.values[taken], builder.values[other]
        if left.shape != right.shape or left.dtype != right.dtype:
            raise UnsupportedOperatorsError(
                "If whose condition is computed from data, with branches of different shapes or types"
            )
        chosen += builder.emit(_select, [inputs[0], taken, other])
    return chosen


def _select(condition: Any, left: Any, right: Any) -> Any:
    return torch.where(condition.reshape([1] * left.dim()), left, right)


def loop(builder: "Builder", attributes: Attributes, inputs: Sequence[str], scope: Scope) -> list[str]:
    """Loop, unrolled. Raises: UnsupportedOperatorsError where only data says how often, or what comes out."""
    body, state = attributes["body"], list(inputs[2:])
    limit = builder.number(inputs[0]) if inputs[0] else MAX_TURNS + 1
    if limit is None:
        raise UnsupportedOperatorsError("Loop whose number of turns is computed from data")
    condition = inputs[1] if len(inputs) > 1 and inputs[1] else builder.add_constant(torch.tensor(True))
    scanned: list[list[str]] = [[] for _ in range(len(body.output) - 1 - len(state))]
    for turn in range(limit):
        going = builder.number(condition)
        if going is False or going == 0:
            break
        if turn >= MAX_TURNS:
            raise UnsupportedOperatorsError(f"Loop of more than {MAX_TURNS} turns, or without a known end")
        count = builder.add_constant(torch.tensor(turn, dtype=torch.int64))
        following, *results = builder.graph(body, scope, [count, condition, *state])
        if going is None:
            if scanned or not set(state) <= builder.values.keys():
                raise UnsupportedOperatorsError(
                    "Loop that data ends, with outputs for each turn or a sequence"
                )
            results = [
                builder.emit(_select, [condition, new, old])[0]
                for new, old in zip(results, state, strict=True)
            ]
            (following,) = builder.emit(torch.logical_and, [condition, following])
        condition, state = following, results[: len(state)]
        for rows, row in zip(scanned, results[len(state) :], strict=True):
            rows.append(row)
    return [*state, *(_stacked(builder, rows, 0) for rows in scanned)]


def _stacked(builder: "Builder", rows: Sequence[str], axis: int) -> str:
    if not rows:
        raise UnsupportedOperatorsError("Loop of no turns, with outputs for each turn")
    return builder.emit(lambda *values: torch.stack(values, axis), rows)[0]


def scan(builder: "Builder", attributes: Attributes, inputs: Sequence[str], scope: Scope) -> list[str]:
    """Scan, unrolled over its sequence; before opset 9 with a batch in front, taken one by one."""
    if builder.opset >= 9:
        return _scan(builder, attributes, inputs, scope)
    if inputs[0]:
        raise UnsupportedOperatorsError("Scan with sequence_lens")
    batch = builder.values[inputs[1]].shape[0]
    each = [
        _scan(builder, attributes, [_taken(builder, key, 0, row) for key in inputs[1:]], scope)
        for row in range(batch)
    ]
    return [_stacked(builder, rows, 0) for rows in zip(*each, strict=True)]


def _scan(builder: "Builder", attributes: Attributes, inputs: Sequence[str], scope: Scope) -> list[str]:
    body, count = attributes["body"], attributes["num_scan_inputs"]
    state, sequences = list(inputs[:-count]), inputs[-count:]
    outputs = len(body.output) - len(state)
    axes = attributes.get("scan_input_axes") or [0] * count
    backwards = attributes.get("scan_input_directions") or attributes.get("directions") or [0] * count
    turns = builder.values[sequences[0]].shape[axes[0]]
    if turns > MAX_TURNS:
        raise UnsupportedOperatorsError(f"Scan of {turns} turns (at most {MAX_TURNS} are unrolled)")
    scanned: list[list[str]] = [[] for _ in range(outputs)]
    for turn in range(turns):
        rows = [
            _taken(builder, key, axis, turns - 1 - turn if reverse else turn)
            for key, axis, reverse in zip(sequences, axes, backwards, strict=True)
        ]
        results = builder.graph(body, scope, [*state, *rows])
        state = results[: len(state)]
        for collected, row in zip(scanned, results[len(state) :], strict=True):
            collected.append(row)
    out_axes = attributes.get("scan_output_axes") or [0] * outputs
    reversed_ = attributes.get("scan_output_directions") or [0] * outputs
    return [
        *state,
        *(
            _stacked(builder, rows[::-1] if reverse else rows, axis)
            for rows, axis, reverse in zip(scanned, out_axes, reversed_, strict=True)
        ),
    ]


def _taken(builder: "Builder", key: str, axis: int, index: int) -> str:
    return builder.emit(lambda value: value.select(axis, index), [key])[0]


CONTROL: Mapping[str, Callable[["Builder", Attributes, Sequence[str], Scope], list[str]]] = {
    "If": choose,
    "Loop": loop,
    "Scan": scan,
}
