"""What a device's self-description comes to where devices are searched, sorted and watched: kept beside it, so that
nobody who looks at all of them reads it.

Pure.

Always true
 1. A fact is one line, `key=value`, with a line end before and after it: a search for whole lines finds no part of one,
    and what a device says holds no line end, so it cannot say a second one.
"""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from edgekit.wire.messages import Reported
from edgekit.wire.states import AgentState
from fleet.rules.findings import REFUSED, Trouble

# Of the text that is searched for words.
MAX_TROUBLE = 2000
# The worst first.
_GRAVITY = (
    AgentState.FAILED, AgentState.DIVERGED, AgentState.ROLLBACK, AgentState.PROBATION, AgentState.COMMIT, AgentState.SWITCH,
    AgentState.SELFTEST, AgentState.STAGE, AgentState.FETCH, AgentState.IDLE,
)  # fmt: skip
_MAX_DETAIL = 200
_REFUSES = (AgentState.FAILED, AgentState.ROLLBACK, AgentState.DIVERGED)


class Kept(NamedTuple):
    """The columns of a device's row: `facts` are searched for whole lines, `trouble` for words; by `gravity` devices are
    ordered, the worst off first; `troubles` are what alerts are made of (JSON, empty where nothing is wrong). As it
    stands here: of a device that said nothing.
    """

    facts: str = ""
    trouble: str = ""
    gravity: int = len(_GRAVITY)
    troubles: str = ""


NOTHING = Kept()


def kept(said: Reported) -> Kept:
    found = troubles(said)
    return Kept(of(said), trouble(said), gravity(said), msgspec.json.encode(found).decode() if found else "")


def gravity(said: Reported) -> int:
    """By the worst state of its deployments."""
    return min((_GRAVITY.index(one.state) for one in said.deployments.values()), default=NOTHING.gravity)


def line(key: str, value: str) -> str:
    """A fact as it stands in `of`."""
    return f"\n{key}={_flat(value)}\n"


def of(said: Reported) -> str:
    """All facts, in order; two that follow each other share the line end between them."""
    facts = "\n".join(sorted({line(key, value).strip("\n") for key, value in _facts(said)}))
    return f"\n{facts}\n" if facts else ""


def _facts(said: Reported) -> Iterator[tuple[str, str]]:
    if said.refused:
        yield "refused", "yes"
    for condition in said.conditions:
        yield "condition", condition.code
        yield "condition", "any"
    for name, one in said.deployments.items():
        yield "state", one.state.value
        if one.digest is None:
            continue
        yield "release", f"{one.model}@{one.model_version}"
        yield "model", one.model
        yield "version", one.model_version
        if one.digest == one.committed:
            yield "at", at(name, one.digest)


def at(deployment: str, digest: str) -> str:
    """The value of the fact that a deployment has this bundle loaded and committed."""
    return f"{deployment} {digest}"


def trouble(said: Reported) -> str:
    """Why it does not do what it should, in its own words: refusals, reasons, conditions."""
    words = (
        said.refused,
        *(one.reason for one in said.deployments.values()),
        *(condition.detail for condition in said.conditions),
    )
    return _flat("; ".join(dict.fromkeys(word for word in words if word)))[:MAX_TROUBLE]


def troubles(said: Reported) -> list[Trouble]:
    """Conditions, bundles that it does not run, and an order that it does not follow."""
    found = [Trouble(one.code, one.detail[:_MAX_DETAIL], one.deployment) for one in said.conditions]
    found += [
        Trouble(REFUSED, one.reason[:_MAX_DETAIL] or one.state.value, name, one.ordered)
        for name, one in said.deployments.items()
        if one.state in _REFUSES and one.ordered is not None and one.ordered != one.committed
    ]
    if said.refused:
        found.append(Trouble("order-refused", said.refused[:_MAX_DETAIL]))
    return found


def _flat(text: str) -> str:
    """Without control characters: databases take no NUL, and a line end would begin another fact."""
    return "".join(" " if ord(char) < 0x20 or ord(char) == 0x7F else char for char in text)
