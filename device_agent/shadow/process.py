"""The shadow's own process: takes copies of what was served, runs them through its bundle, and counts how far both agree.

Started by the supervisor, confined like a worker, on one thread at idle priority. Of its processor time it spends at most a
share (`pace.Allowance`); what comes of it goes to the supervisor about once a second.
"""

import argparse
import os
import select
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from device_agent import log, parent
from device_agent.channel import Failed, Message, Ready, Shadowed
from device_agent.shadow import copies
from device_agent.shadow.copies import Copy
from device_agent.shadow.idle import be_idle
from device_agent.shadow.pace import Allowance
from device_agent.update import slots
from device_agent.update.events import Cause
from edgekit import agreement
from edgekit.engines import LoadedBundle
from edgekit.errors import BundleError, EdgeKitError
from edgekit.manifest import Manifest
from edgekit.sketch import SketchBuilder
from edgekit.tensors import Array
from edgekit.transforms import prepare
from edgekit.wire.messages import Moments, ShadowWindow

TELL_S = 1.0
# A copy that was asked for and does not come is asked for again: the worker that was asked may be gone.
ASK_AGAIN_S = 5.0
CANNOT_RUN = 3


class Shadow:
    """One loaded slot, and what was counted since it was last told."""

    def __init__(self, slot: Path, cache: Path) -> None:
        """Raises: EdgeKitError, OSError, MemoryError."""
        mark, manifest = slots.load_checked(slot)
        engine = msgspec.structs.replace(manifest.engine, threads=1)
        self.manifest: Manifest = msgspec.structs.replace(manifest, engine=engine)
        self.digest = mark.sha256
        self._loaded = LoadedBundle(self.manifest, slot, cache=cache)
        self._ranked = agreement.scored(self.manifest)
        self._fed = {pair.output for pair in self.manifest.state}
        self._clear()

    def _clear(self) -> None:
        self._compared = self._dropped = self._failed = 0
        self._agreed: dict[str, list[float]] = {}
        self._cpu, self._served = SketchBuilder(), SketchBuilder()

    def take(self, copy: Copy) -> None:
        """Answer one copy too, and compare. A shadow's own failure is a count."""
        self._dropped += copy.head.skipped
        began = time.process_time()
        try:
            inputs = self._ready(copy)
            outputs = self._loaded.run(inputs)
        except EdgeKitError as error:
            self._failed += 1
            if self._failed == 1:
                log.trouble("the shadow cannot answer what was served", reason=error)
            return
        self._cpu.add((time.process_time() - began) * 1000)
        self._served.add(copy.head.took_ms)
        self._compared += 1
        told = {name: array for name, array in outputs.items() if name not in self._fed}
        for name, share in agreement.of(copy.outputs, told, self._ranked, self.manifest.sets or ()).items():
            self._agreed.setdefault(name, []).append(share)

    def _ready(self, copy: Copy) -> Mapping[str, Array]:
        if not copy.head.is_raw:
            return copy.inputs
        return prepare(self.manifest.admitted, self.manifest.preprocess, copy.inputs)

    def snapshot(self) -> ShadowWindow | None:
        """What was counted since the last; None if nothing was."""
        if not (self._compared or self._dropped or self._failed):
            return None
        window = ShadowWindow(
            digest=self.digest,
            compared=self._compared,
            dropped=self._dropped,
            failed=self._failed,
            agreement={name: Moments(len(shares), sum(shares)) for name, shares in self._agreed.items()},
            cpu_ms=self._cpu.snapshot(),
            served_ms=self._served.snapshot(),
        )
        self._clear()
        return window


def follow(shadow: Shadow, feed: socket.socket, control: socket.socket, share: float) -> None:
    """Until the supervisor is gone."""
    now = time.monotonic()
    allowance, spent = Allowance(share, now), time.process_time()
    asked = told = -ASK_AGAIN_S
    is_asked = False
    while True:
        now = time.monotonic()
        wait_s = allowance.wait_s(now)
        if not wait_s and (not is_asked or now - asked > ASK_AGAIN_S):
            _ask(feed)
            is_asked, asked = True, now
        readable = select.select([feed, control], [], [], min(TELL_S, wait_s or TELL_S))[0]
        if control in readable and not control.recv(64):
            return
        if feed in readable:
            try:
                copy = copies.receive(feed)
            except ConnectionResetError:
                # The worker is gone, and this process with it: the next one gets a shadow of its own.
                return
            is_asked = False
            if copy is not None:
                shadow.take(copy)
        now = time.monotonic()
        if now - told >= TELL_S and (window := shadow.snapshot()) is not None:
            told = now
            _tell(control, Shadowed(window))
        cpu = time.process_time()
        allowance.spend(cpu - spent, now)
        spent = cpu


def _ask(feed: socket.socket) -> None:
    try:
        feed.send(copies.WANTED, socket.MSG_DONTWAIT)
    except BlockingIOError:
        # Asked often enough: nobody serves.
        return


def _tell(control: socket.socket, message: Message) -> None:
    control.send(b"J" + msgspec.json.encode(message))


def main() -> None:
    parser = argparse.ArgumentParser(description="EdgeKit shadow; started by 'edgekit agent run'.")
    parser.add_argument("--parent", type=int, required=True, help="the process that this one ends with")
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--feed", type=int, required=True)
    parser.add_argument("--share", type=float, required=True, help="of a processor's time")
    parser.add_argument("--slot", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--log-json", action="store_true")
    chosen = parser.parse_args()
    be_idle()
    parent.die_with(chosen.parent)
    log.set_up(as_json=chosen.log_json)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control, feed = (socket.socket(fileno=number) for number in (chosen.control, chosen.feed))
    try:
        shadow = Shadow(chosen.slot, chosen.cache)
    except (EdgeKitError, OSError, MemoryError) as error:
        is_bundles = isinstance(error, EdgeKitError) and not isinstance(error, BundleError)
        _tell(
            control, Failed(str(error) or type(error).__name__, Cause.BUNDLE if is_bundles else Cause.PASSING)
        )
        raise SystemExit(CANNOT_RUN) from None
    _tell(control, Ready(shadow.digest, shadow.manifest.name, shadow.manifest.version))
    follow(shadow, feed, control, chosen.share)
    os._exit(0)


if __name__ == "__main__":
    main()
