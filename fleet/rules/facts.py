"""What a device's self-description comes to where devices are searched: kept beside it, so that no search reads it.

Pure.

Always true
 1. A fact is one line, `key=value`, with a line end before and after it: a search for whole lines finds no part of one,
    and what a device says holds no line end, so it cannot say a second one.
"""

from collections.abc import Iterator

from edgekit.wire.messages import Reported
from edgekit.wire.states import AgentState

# Of the text that is searched for words.
MAX_TROUBLE = 2000
# The worst first.
_GRAVITY = (
    AgentState.FAILED, AgentState.DIVERGED, AgentState.ROLLBACK, AgentState.PROBATION, AgentState.COMMIT, AgentState.SWITCH,
    AgentState.SELFTEST, AgentState.STAGE, AgentState.FETCH, AgentState.IDLE,
)  # fmt: skip
# Of a device that said nothing.
NO_GRAVITY = len(_GRAVITY)


def gravity(said: Reported) -> int:
    """By which devices are ordered, the worst off first: by the worst state of its deployments."""
    return min((_GRAVITY.index(one.state) for one in said.deployments.values()), default=NO_GRAVITY)


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


def _flat(text: str) -> str:
    """Without control characters: databases take no NUL, and a line end would begin another fact."""
    return "".join(" " if ord(char) < 0x20 or ord(char) == 0x7F else char for char in text)
