"""Samples on the device's disk until the fleet has them, and what was kept by each policy.

    samples/NUMBER-POLICY-SHA256.sample    in the order in which they were taken
    samples/counts.json                    `Counts`, a record

Always true
 1. What was kept is counted on the medium before the sample is: a power cut in between allows one less, never one more.
 2. At most `MAX_SAMPLES` and `MAX_BYTES` wait; the oldest go first, and are counted.
 3. A sample is what its name says, or it is dropped and counted.

Used from the storage thread only.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from device_agent import durable, log
from device_agent.record import Record
from device_agent.samples import allowance
from device_agent.samples.allowance import Taken
from edgekit.errors import MessageError
from edgekit.wire.samples import MAX_SAMPLE_BYTES, PolicyId, SamplePolicy, unpack

MAX_SAMPLES = 500
MAX_BYTES = 64 << 20
# What a sample must leave of the disk.
LEAVE_FREE_BYTES = 256 << 20
_NAME = re.compile(r"^(\d{12})-(s[1-9]\d{0,8})-([0-9a-f]{64})\.sample$")


class Waiting(NamedTuple):
    """A sample on the disk."""

    number: int
    policy: PolicyId
    sha256: str
    size: int
    path: Path


class Counts(msgspec.Struct, frozen=True):
    """By policy; of those in force, and no others."""

    taken: dict[str, Taken] = {}


class Held(NamedTuple):
    """What waits, oldest first; what was taken; how many samples this store kept and dropped since it was made."""

    waiting: tuple[Waiting, ...] = ()
    taken: Mapping[str, Taken] = {}
    kept: int = 0
    dropped: int = 0


class Store:
    def __init__(self, folder: Path, *, max_samples: int = MAX_SAMPLES, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_samples, self._max_bytes = max_samples, max_bytes
        self._record = Record(folder / "counts.json", Counts)
        self._counts = Counts()
        self._waiting: list[Waiting] = []
        self._kept = self._dropped = 0
        self._is_open = False

    def follow(self, policies: Collection[str]) -> Held:
        """Forget what is of none of these policies, on the medium too. Raises: OSError."""
        self._open()
        gone = [one for one in self._waiting if one.policy not in policies]
        self._remove(gone)
        taken = {name: found for name, found in self._counts.taken.items() if name in policies}
        if taken != self._counts.taken:
            self._counts = Counts(taken)
            self._record.save(self._counts)
        return self.held

    def keep(
        self,
        descriptor: int,
        deployment: str,
        policies: Mapping[str, SamplePolicy],
        trusted: datetime,
        known: datetime | None,
    ) -> Held:
        """Keep what is in a descriptor's memory, if one of the policies allows it. Raises: OSError."""
        self._open()
        data = os.pread(descriptor, MAX_SAMPLE_BYTES + 1, 0)
        try:
            about, _arrays = unpack(data)
        except MessageError as error:
            log.trouble("a worker's sample cannot be read", reason=error)
            return self._lost()
        policy = policies.get(about.policy)
        if policy is None or not policy.deployment == about.deployment == deployment:
            return self._lost()
        taken = allowance.one_more(
            policy, self._counts.taken.get(policy.id, Taken()), len(data), trusted, known
        )
        if taken is None or shutil.disk_usage(self._folder.parent).free < LEAVE_FREE_BYTES:
            return self._lost()
        durable.make_folder(self._folder)
        self._make_room(len(data))
        self._counts = Counts({**self._counts.taken, policy.id: taken})
        self._record.save(self._counts)
        number = self._waiting[-1].number + 1 if self._waiting else 1
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._folder / f"{number:012d}-{policy.id}-{sha256}.sample"
        durable.write(path, data)
        self._waiting.append(Waiting(number, policy.id, sha256, len(data), path))
        self._kept += 1
        return self.held

    def read(self, one: Waiting) -> bytes | None:
        """A sample's file; None, and dropped, if it is not what its name says. Raises: OSError."""
        try:
            data = one.path.read_bytes()
        except FileNotFoundError:
            data = b""
        if hashlib.sha256(data).hexdigest() == one.sha256:
            return data
        log.trouble("a sample was damaged on the disk and is dropped", sample=one.sha256[:12])
        self._remove([one])
        self._dropped += 1
        return None

    def remove(self, one: Waiting) -> Held:
        """The fleet has it, or does not want it. Raises: OSError."""
        self._remove([one])
        return self.held

    @property
    def held(self) -> Held:
        return Held(tuple(self._waiting), self._counts.taken, self._kept, self._dropped)

    def _open(self) -> None:
        if self._is_open:
            return
        found = []
        for path in self._folder.iterdir() if self._folder.exists() else ():
            if path.name.endswith(".sample.new"):
                durable.remove(path)
            elif match := _NAME.match(path.name):
                found.append(Waiting(int(match[1]), match[2], match[3], path.stat().st_size, path))
        self._waiting = sorted(found)
        self._counts = self._record.load() or Counts()
        self._is_open = True

    def _make_room(self, size: int) -> None:
        oldest = []
        count, total = len(self._waiting), sum(one.size for one in self._waiting)
        for one in self._waiting:
            if count < self._max_samples and total + size <= self._max_bytes:
                break
            oldest.append(one)
            count, total = count - 1, total - one.size
        self._dropped += len(oldest)
        self._remove(oldest)

    def _remove(self, gone: Collection[Waiting]) -> None:
        if not gone:
            return
        for one in gone:
            durable.remove(one.path)
        durable.sync_folder(self._folder)
        self._waiting = [one for one in self._waiting if one not in gone]

    def _lost(self) -> Held:
        self._dropped += 1
        return self.held
