"""What this machine is: profile, instruction sets, working engines.

An engine works if it loads and runs a model of one operator. Each is tried in a short-lived child of its own, so one
that crashes is a finding about that engine and nothing else.
"""

import argparse
import asyncio
import os
import signal
import sys

import msgspec

from device_agent import confined
from edgekit import distribution
from edgekit.errors import EdgeKitError, ProfileError, ToolFailedError
from edgekit.plugins import ADAPTERS

TIMEOUT_S = 120.0
_USAGE = 2


class Base(msgspec.Struct, frozen=True):
    """A `Platform` but for its engines: what the first child tells."""

    profiles: tuple[str, ...]
    overlap: bool
    isa: tuple[str, ...]


class Trial(msgspec.Struct, frozen=True):
    """How an engine's trial ended: `version` of one that works, else what went wrong."""

    version: str = ""
    trouble: str = ""


class Platform(msgspec.Struct, frozen=True):
    """`profiles` goes from the profile itself to the most general it extends; a bundle for any of them runs here.

    `engines` are those that work, by version; `broken` those that are installed and do not, by what went wrong.
    """

    profiles: tuple[str, ...]
    overlap: bool
    isa: tuple[str, ...]
    engines: dict[str, str]
    broken: dict[str, str] = {}

    @property
    def profile(self) -> str:
        return self.profiles[0]


async def find(profile: str | None) -> Platform:
    """The platform with the given profile, or the most specific shipped one that fits.

    Raises: ProfileError for a profile that cannot be used; ToolFailedError if that cannot be found out.
    """
    names = [name for name in ADAPTERS.names() if distribution.engine_is_present(name)]
    base, trials = await asyncio.gather(_base(profile), asyncio.gather(*map(_trial, names)))
    tried = dict(zip(names, trials, strict=True))
    return Platform(
        base.profiles,
        base.overlap,
        base.isa,
        {name: trial.version for name, trial in tried.items() if not trial.trouble},
        {name: trial.trouble for name, trial in tried.items() if trial.trouble},
    )


async def _base(profile: str | None) -> Base:
    code, output, told = await _child(*(["--profile", profile] if profile else []))
    if code == _USAGE:
        raise ProfileError(told)
    if code != 0:
        raise ToolFailedError(f"looking at this machine failed ({_ended(code)}): {told[-2000:]}")
    return msgspec.json.decode(output.splitlines()[-1], type=Base)


async def _trial(engine: str) -> Trial:
    try:
        code, output, told = await _child("--engine", engine)
    except ToolFailedError as error:
        return Trial(trouble=str(error))
    if code != 0 or not output.strip():  # a library may end the process as if nothing were wrong
        last = told.splitlines()[-1] if told else "it said nothing"
        return Trial(trouble=f"the process that tried it ended with {_ended(code)}: {last}")
    return msgspec.json.decode(output.splitlines()[-1], type=Trial)


async def _child(*words: str) -> tuple[int, bytes, str]:
    """Exit code, output and error text of this module in a process of its own. Raises: ToolFailedError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "device_agent.probe",
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=confined.environment(),
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    except TimeoutError as error:
        raise ToolFailedError(f"looking at this machine took longer than {TIMEOUT_S:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode or 0, output, errors.decode("utf-8", "replace").strip()


def _ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code}, {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def look(profile: str | None) -> Base:
    """The first child's half. Raises: ProfileError."""
    from edgekit import detect
    from edgekit import profile as profiles

    loaded = profiles.load(profile or detect.closest_shipped())
    return Base(loaded.chain, loaded.overlap, detect.isa())


def attempt(engine: str) -> Trial:
    """The other children's half."""
    from edgekit.engines import _trial

    try:
        return Trial(version=_trial.attempt(engine))
    except EdgeKitError as error:
        return Trial(trouble=str(error))


def main() -> None:
    parser = argparse.ArgumentParser(description="What this machine is; started by 'edgekit agent'.")
    parser.add_argument("--profile")
    parser.add_argument("--engine", choices=ADAPTERS.names())
    chosen = parser.parse_args()
    try:
        found = attempt(chosen.engine) if chosen.engine else look(chosen.profile)
    except ProfileError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(_USAGE) from None
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(found) + b"\n")
    sys.stdout.flush()
    # Skips interpreter teardown, where some engines crash after a clean run.
    os._exit(0)


if __name__ == "__main__":
    main()
