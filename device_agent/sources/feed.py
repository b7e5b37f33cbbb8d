"""What every source works with: an answer for an input, a place where answers are kept, and the end.

Always true
 1. An input that is patient (`answer`) waits until there is an answer or a refusal; so a slow model slows its source.
 2. `keep` returns once the answer is on disk, together with what the source remembers of the input.
"""

import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

import msgspec

from device_agent import log
from device_agent.channel import SourceTold
from device_agent.sources.ask import MAX_LOST, Asker, Refused, UnavailableError
from device_agent.sources.outbox import Outbox, Remember

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
FULL_PAUSE_S = 0.2


class StoppedError(Exception):
    """The source is to end."""


# Where an input came from, by the source's own words.
About = Mapping[str, str | int | float | bool]


class Given(NamedTuple):
    """An input. `uid` is the same whenever this input is read again; `about` says where it came from."""

    uid: str
    content_type: str
    body: bytes
    about: About


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a sink gets, as JSON: `answer` as the model's side gave it, or `error` with `reason`."""

    id: str
    source: str
    time: datetime
    input: About
    deployment: str = ""
    answer: msgspec.Raw | None = None
    error: str = ""
    reason: str = ""


class Source(Protocol):
    """One kind of source; `run` reads until `feed` says that it is to end (StoppedError), or there is nothing more.

    Raises: FeedError saying what is wrong and what to do; the process ends with it and is started again.
    """

    def run(self, feed: "Feed") -> None: ...


class Tally:
    """What happened since the process started, and what is in the way now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = {"read": 0, "answered": 0, "refused": 0, "dropped": 0, "delivered": 0}
        self._waits = ""
        self._troubles: dict[str, str] = {}

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self._counts[what] += number

    def waits(self, why: str) -> None:
        """Why the source does not go on; empty when it does."""
        with self._lock:
            self._waits = why

    def trouble(self, sink: str, why: str) -> None:
        """Why a sink takes nothing; empty when it does."""
        with self._lock:
            if why and sink not in self._troubles:
                log.trouble("a sink takes nothing; trying again", sink=sink, reason=why)
            elif not why and sink in self._troubles:
                log.event("a sink takes answers again", sink=sink)
            if why:
                self._troubles[sink] = why
            else:
                self._troubles.pop(sink, None)

    def told(self, waiting: int) -> SourceTold:
        with self._lock:
            told = SourceTold(waiting=waiting, waits=self._waits, sinks=dict(self._troubles))
            return msgspec.structs.replace(told, **self._counts)


class Feed:
    """Of the source `name`. Its methods are for the source's own thread, but for `stop`."""

    def __init__(self, name: str, deployment: str, asker: Asker, outbox: Outbox, tally: Tally) -> None:
        self._name = name
        self._deployment = deployment
        self._asker = asker
        self.outbox = outbox
        self.tally = tally
        self.stopping = threading.Event()

    def stop(self) -> None:
        self.stopping.set()

    def pause(self, seconds: float) -> None:
        """Raises: StoppedError."""
        if self.stopping.wait(seconds):
            raise StoppedError

    def wait_for_room(self) -> None:
        """Until sinks have taken enough; before each input. Raises: StoppedError."""
        self.pause(0)
        while self.outbox.is_full:
            self.tally.waits("the backlog is full until a sink takes something")
            self.pause(FULL_PAUSE_S)
        self.tally.waits("")

    def answer(self, given: Given) -> msgspec.Raw | Refused:
        """An answer, however long that takes. Raises: StoppedError."""
        lost, pause = 0, FIRST_PAUSE_S
        while True:
            try:
                found = self._asker.ask(given.body, given.content_type)
            except UnavailableError as error:
                lost += error.is_lost
                if lost >= MAX_LOST:
                    return Refused("lost", f"{MAX_LOST} requests of it got no answer: {error}")
                self.tally.waits(str(error))
                self.pause(pause)
                pause = min(LONGEST_PAUSE_S, pause * 2)
            else:
                self.tally.waits("")
                return found

    def answer_now(self, given: Given) -> msgspec.Raw | Refused | None:
        """An answer, or None where there is none to be had at once: the input is worth nothing later."""
        try:
            found = self._asker.ask(given.body, given.content_type)
        except UnavailableError as error:
            self.tally.waits(str(error))
            self.tally.count("dropped")
            return None
        self.tally.waits("")
        return found

    def keep(
        self,
        given: Given,
        found: msgspec.Raw | Refused,
        remember: Remember | None = None,
        *,
        makes_room: bool = False,
    ) -> None:
        """Keep what was answered for the sinks. With `makes_room` the oldest answers go where there is none.

        Raises: sqlite3.Error or OSError if the disk takes nothing.
        """
        is_refused = isinstance(found, Refused)
        result = Result(
            id=given.uid, source=self._name, time=datetime.now(UTC), input=given.about, deployment=self._deployment,
            answer=None if isinstance(found, Refused) else found,
            error=found.code if isinstance(found, Refused) else "",
            reason=found.reason if isinstance(found, Refused) else "",
        )  # fmt: skip
        lost = self.outbox.put(given.uid, msgspec.json.encode(result), remember, makes_room=makes_room)
        self.tally.count("dropped", lost)
        self.tally.count("refused" if is_refused else "answered")
