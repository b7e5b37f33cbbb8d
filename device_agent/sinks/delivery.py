"""Takes answers from a source's outbox to one sink, the oldest first, until the sink has each.

Always true
 1. An answer leaves the outbox only after the sink has it for good, or refused this very answer. A process that ends in
    between sends it again: at least once, with the same `id`.
 2. A sink that takes nothing is tried again, with back-off and jitter, for ever.
"""

import random
import threading
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from device_agent import log
from device_agent.sources.feed import Tally
from device_agent.sources.outbox import Outbox, Owed
from edgekit.errors import FeedError

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
BATCH = 64
# How often a sink looks for what it was not told of.
LOOK_S = 1.0


class Taken(NamedTuple):
    """The numbers of answers that a sink has, and of those that it will never take."""

    has: tuple[int, ...]
    refused: tuple[int, ...] = ()


class Sink(Protocol):
    """One kind of sink."""

    def deliver(self, answers: Sequence[Owed]) -> Taken:
        """Take answers in order, perhaps not all.

        Raises: FeedError saying why it takes nothing and what to do.
        """
        ...

    def close(self) -> None: ...


class Delivery:
    """A thread for one sink. `stop` lets it take what is there already, for a moment."""

    def __init__(self, name: str, sink: Sink, outbox: Outbox, tally: Tally) -> None:
        self._name = name
        self._sink = sink
        self._outbox = outbox
        self._tally = tally
        self._stopping = threading.Event()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        with self._outbox.came:
            self._outbox.came.notify_all()

    def join(self, patience_s: float) -> None:
        self._thread.join(patience_s)

    def _run(self) -> None:
        try:
            self._deliver()
        except BaseException as error:  # noqa: BLE001  # whatever it is, the process ends with it
            self.failure = error
            log.trouble("a sink failed", sink=self._name, reason=repr(error))
        finally:
            self._sink.close()

    def _deliver(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            answers = self._outbox.owed(self._name, BATCH)
            if not answers:
                if self._stopping.is_set():
                    return
                with self._outbox.came:
                    self._outbox.came.wait(LOOK_S)
                continue
            try:
                taken = self._sink.deliver(answers)
            except FeedError as error:
                self._tally.trouble(self._name, str(error))
                if self._stopping.wait(pause * random.uniform(0.5, 1.0)):  # noqa: S311  # jitter, no secret
                    return
                pause = min(LONGEST_PAUSE_S, pause * 2)
                continue
            pause = FIRST_PAUSE_S
            self._outbox.taken(self._name, (*taken.has, *taken.refused))
            self._tally.count("delivered", len(taken.has))
            self._tally.count("dropped", len(taken.refused))
            self._tally.trouble(self._name, "")
