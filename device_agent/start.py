"""The start of an agent: its place on the machine, and who it is. Then `device_agent.supervisor` runs it.

Always true
 1. A state folder that was made on other hardware starts nothing: two devices of one identity would fight.
 2. A new enrolment file is used beside a running agent: what serves goes on until the new identity is on disk, and on
    for good if the fleet refuses it. A file of another fleet is refused at once.
"""

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple

from device_agent import enrol, hardware, identity, log, notify, probe
from device_agent.clock import Clock
from device_agent.config import Settings, Who
from device_agent.enrol import Asking
from device_agent.hardware import Hardware
from device_agent.identity import DeviceIdentity
from device_agent.listen import Listener, listen
from device_agent.network import Access
from device_agent.notify import Notifier
from device_agent.probe import Platform
from device_agent.storage import Storage
from device_agent.supervisor import Agent
from edgekit.errors import EdgeKitError, UsageError
from edgekit.wire.enrolment import EnrolmentFile

# From then on joining a fleet is waiting.
JOINING_S = 10.0


class _Known(NamedTuple):
    """Who this device is, and the file by which it is to enrol again."""

    identity: DeviceIdentity
    again: EnrolmentFile | None = None


async def run(settings: Settings) -> bool:
    """The agent, until it is told to end; whether it is to be started again, as a whole.

    Raises: UsageError and other EdgeKitErrors for what a user can mend.
    """
    notifier = notify.of(os.environ, os.getpid())
    stopping = _stop_on_signals(notifier)
    beating = asyncio.create_task(notifier.beat())
    _allow_descriptors()
    lock = settings.state.lock()
    storage = Storage(settings.state.root)
    listeners: tuple[Listener, ...] = ()
    try:
        listeners = listen(settings.http, settings.secured)
        platform = await probe.find(settings.profile)
        for engine, trouble in platform.broken.items():
            log.trouble("an engine is installed but does not work", engine=engine, why=trouble)
        here = hardware.look(hardware.root())
        # A fleet that cannot be reached is waited for as long as it takes: that is no start that hangs.
        told = asyncio.get_running_loop().call_later(JOINING_S, notifier.ready, "waiting to join its fleet")
        try:
            known = await _or_stop(who_am_i(settings, platform, storage, here), stopping)
        finally:
            told.cancel()
        if known is not None:
            notifier.ready(
                f"{known.identity.answer.device} as {platform.profile}, {', '.join(settings.http)}"
            )
        while known is not None:
            known, is_restarting = await _serve(
                settings, platform, storage, here, known, listeners=listeners, stopping=stopping
            )
            if is_restarting:
                return True
            listeners = listen(settings.http, settings.secured) if known is not None else ()
    finally:
        for listener in listeners:
            listener.close()
        await storage.close()
        os.close(lock)
        beating.cancel()
    return False


async def _serve(
    settings: Settings,
    platform: Platform,
    storage: Storage,
    here: Hardware,
    known: _Known,
    *,
    listeners: Sequence[Listener],
    stopping: asyncio.Event,
) -> tuple[_Known | None, bool]:
    """An agent of one identity; who it is next if it enrolled again meanwhile, or None if it was told to end, and whether
    it was told to start again.
    """
    who = await storage.do(lambda: credentials_of(settings, known.identity))
    agent = await Agent.made(settings, platform, who, listeners, storage)
    ending = asyncio.Event()
    waiting = asyncio.create_task(_pass_on(stopping, ending))
    again: asyncio.Task[_Known | None] | None = None
    if known.again is not None:
        asking = Asking(known.again, platform.profile, here, settings.name)
        again = asyncio.create_task(_again(settings, storage, asking, agent, ending))
    try:
        await agent.run(ending)
    finally:
        waiting.cancel()
        if again is not None and not again.done():
            again.cancel()
    if stopping.is_set() or agent.restarting.is_set():
        return None, agent.restarting.is_set() and not stopping.is_set()
    return again.result() if again is not None and again.done() else None, False


async def _again(
    settings: Settings, storage: Storage, asking: Asking, agent: Agent, ending: asyncio.Event
) -> _Known | None:
    """Enrol anew beside the running agent, and end that when it is done."""
    try:
        made = await enrol.enrol(storage, settings.state, asking)
    except EdgeKitError as error:
        log.trouble("the new enrolment file cannot be used; going on as before", reason=error)
        agent.conditions.set("enrolment-refused", f"the new enrolment file cannot be used: {error}")
        return None
    ending.set()
    return _Known(made)


async def _pass_on(stopping: asyncio.Event, ending: asyncio.Event) -> None:
    await stopping.wait()
    ending.set()


def credentials_of(settings: Settings, known: DeviceIdentity) -> Who:
    """Raises: UsageError if the key is lost or does not fit."""
    key = identity.key_of(settings.state, known)
    clock = Clock()
    access = Access(known.file.ca, known.file.allowed_hosts, clock.known)
    access.show(known.answer.certificate, key.pem, known.answer.credential)
    return Who(known, key, access, clock)


async def who_am_i(settings: Settings, platform: Platform, storage: Storage, here: Hardware) -> _Known:
    """The identity in the state folder, or the one that enrolling with the given file brings.

    Raises: UsageError if there is neither, or a file or hardware that does not fit the identity.
    """
    known = await storage.do(lambda: identity.load(settings.state))
    file = _given(settings, known)
    other = hardware.difference(known.hardware, here) if known is not None else ""
    if known is None or other:
        if file is None:
            raise UsageError(
                f"{settings.state.root}: this device has not joined a fleet yet; give --enrolment FILE, which"
                " 'edgekit fleet enroll' makes"
                if known is None
                else f"{settings.state.root}: this state folder is {known.answer.device}'s, on other hardware:"
                f" {other}. Give --enrolment FILE with a new file for this device, or put the card back"
            )
        if known is not None:
            _check_fleet(settings, known, file)
            log.trouble("this state folder was made on other hardware; enrolling anew", why=other)
        return _Known(
            await enrol.enrol(storage, settings.state, Asking(file, platform.profile, here, settings.name))
        )
    if file is None or known.came_from(file):
        return _Known(known)
    _check_fleet(settings, known, file)
    if identity.token_digest(file.token) == known.token_sha256:
        # The same enrolment with other addresses or keys: nothing is to be asked for.
        known = identity.made_of(file, known.answer, platform.profile, known.hardware)
        await enrol.keep(storage, settings.state, known)
        log.event("the enrolment file was changed, and is used", fleet=file.fleet, device=known.answer.device)
        return _Known(known)
    log.event("a new enrolment file: enrolling again", fleet=file.fleet, device=known.answer.device)
    return _Known(known, file)


def _given(settings: Settings, known: DeviceIdentity | None) -> EnrolmentFile | None:
    given = settings.enrolment
    if given is None:
        return None
    if known is not None and not given.exists():
        log.trouble("the enrolment file is gone; it is not needed any more", file=given)
        return None
    return identity.read_enrolment(given)


def _check_fleet(settings: Settings, known: DeviceIdentity, file: EnrolmentFile) -> None:
    if file.fleet != known.file.fleet:
        raise UsageError(
            f"{settings.state.root}: this state folder belongs to {known.answer.device} of fleet"
            f" {known.file.fleet}, the enrolment file {settings.enrolment} is of fleet {file.fleet}; leave --enrolment"
            " out to go on, or give a new --state folder to join the other fleet"
        )


async def _or_stop(work: Coroutine[Any, Any, _Known], stopping: asyncio.Event) -> _Known | None:
    """The work's result, or None if the agent was told to end first."""
    task = asyncio.ensure_future(work)
    stop = asyncio.ensure_future(stopping.wait())
    await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if task.done():
        return task.result()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, EdgeKitError):
        await task
    return None


def _stop_on_signals(notifier: Notifier) -> asyncio.Event:
    stopping = asyncio.Event()

    def stop() -> None:
        notifier.stopping()
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return stopping


def _allow_descriptors() -> None:
    """As many open files as the system lets this process have; every connection is one."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
