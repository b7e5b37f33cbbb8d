"""A worker process of a build: opens the project again, then makes and runs what it is ordered.

    python -m converters.work.worker DESCRIPTOR FOLDER

The building process's side is `converters.work.pool`.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from converters import backends
from converters.source.code import CodeGate
from converters.work.pool import Ahead, Loaded, Opened, Opening, Told
from converters.work.workbench import Workbench
from edgekit.quiet import first_line

_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> None:
    _die_with_parent()
    # What this process starts must not hold the line open.
    descriptor = int(arguments[0])
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    opening = _opening(connection)

    def tell(text: str) -> None:
        connection.send(Told(text))

    bench = Workbench(
        opening.project,
        # Each file of the user's code was told of before it first ran, in the building process.
        CodeGate(opening.allow_code, lambda _: None),
        replace(opening.cache, tell=tell),
        Path(arguments[1]),
        tell,
        canonical_forms=opening.canonicals,
        known_judges=opening.judges,
        known_sets=opening.sets,
        spool=opening.spool,
        is_beside=True,
    )
    objection = _objection(bench, opening)
    connection.send(Opened(objection))
    while not objection:
        try:
            order, known = connection.recv()
        except EOFError:
            return
        bench.findings.update(known)
        bench.fulfil(order)
        connection.send(bench.findings.portable())
        bench.findings = bench.findings.artifacts_only()


def _opening(connection: Connection) -> Opening:
    """What the building process has read, once it has; until then, load what it asks for."""
    message: Ahead | Opening = connection.recv()
    while isinstance(message, Ahead):
        # Whoever converts with it meets the same, and says so as the reason of a candidate.
        if message.engine:
            with suppress(Exception):
                backends.get(message.engine).load()
        connection.send(Loaded(time.monotonic()))
        message = connection.recv()
    return message


def _objection(bench: Workbench, opening: Opening) -> str:
    """Why nothing made here would be the building process's; empty if all is as it was there."""
    try:
        sha256 = bench.source.sha256
        if opening.evaluation is not None:
            bench.data.evaluation = opening.evaluation.taken()
        bench.data.fingerprint, bench.data.feeds_fingerprint = opening.calibration, opening.feeds
        bench.prepared, bench.metric  # noqa: B018  # opened once and kept
    except Exception as error:  # noqa: BLE001  # the user's code may raise anything; the reason is told
        return f"the project does not open a second time ({first_line(error)})"
    if sha256 != opening.sha256:
        return (
            f"{opening.project.model.source} gives another model each time; set a seed in it, or load its weights,"
            " so that builds can be repeated"
        )
    return ""


def _die_with_parent() -> None:
    """Even if that is killed (prctl(2), Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
