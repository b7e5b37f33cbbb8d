"""The start of an agent: its place on the machine, and who it is. Then `device_agent.supervisor` runs it."""

import asyncio
import os
import resource
import signal
from collections.abc import Coroutine
from typing import Any

from device_agent import enrol, identity, log, probe
from device_agent.identity import DeviceIdentity
from device_agent.listen import Listener, listen
from device_agent.probe import Platform
from device_agent.storage import Storage
from device_agent.supervisor import Agent, Settings
from edgekit.errors import UsageError


async def run(settings: Settings) -> None:
    """The agent, until it is told to end.

    Raises: UsageError and other EdgeKitErrors for what a user can mend.
    """
    stopping = _stop_on_signals()
    _allow_descriptors()
    lock = settings.state.lock()
    storage = Storage(settings.state.root)
    listeners: tuple[Listener, ...] = ()
    try:
        listeners = listen(settings.http, settings.secured)
        platform = await probe.find(settings.profile)
        for engine, trouble in platform.broken.items():
            log.trouble("an engine is installed but does not work", engine=engine, why=trouble)
        known = await _or_stop(_who_am_i(settings, platform, storage), stopping)
        if known is None:
            return
        agent = await Agent.made(settings, platform, known, listeners, storage)
        await agent.run(stopping)
    finally:
        for listener in listeners:
            listener.close()
        await storage.close()
        os.close(lock)


async def _who_am_i(settings: Settings, platform: Platform, storage: Storage) -> DeviceIdentity:
    """The identity in the state folder, or the one that enrolling with the given file brings.

    Raises: UsageError if there is neither, or an enrolment file that is not the one this device enrolled with.
    """
    known = await storage.do(lambda: identity.load(settings.state))
    given = settings.enrolment
    if known is None:
        if given is None:
            raise UsageError(
                f"{settings.state.root}: this device has not joined a fleet yet; give --enrolment FILE, which"
                " 'edgekit fleet enroll' makes"
            )
        return await enrol.enrol(storage, settings.state, identity.read_enrolment(given), platform.profile)
    if given is None:
        return known
    if not given.exists():
        log.trouble("the enrolment file is gone; it is not needed any more", file=given)
    elif not known.came_from(identity.read_enrolment(given)):
        raise UsageError(
            f"{settings.state.root}: this state folder is enrolled as {known.answer.device} of fleet"
            f" {known.file.fleet}, with another file than {given}; leave --enrolment out to go on with that, or give"
            " a new --state folder to enrol again"
        )
    return known


async def _or_stop(
    work: Coroutine[Any, Any, DeviceIdentity], stopping: asyncio.Event
) -> DeviceIdentity | None:
    """The work's result, or None if the agent was told to end first."""
    task = asyncio.ensure_future(work)
    stop = asyncio.ensure_future(stopping.wait())
    await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if task.done():
        return task.result()
    task.cancel()
    return None


def _stop_on_signals() -> asyncio.Event:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping


def _allow_descriptors() -> None:
    """As many open files as the system lets this process have; every connection is one."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
