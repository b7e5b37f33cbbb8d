"""What this machine is: profile, instruction sets, working engines.

`find` runs this module in a short-lived child, because trying an engine means loading it.
"""

import argparse
import asyncio
import os
import sys

import msgspec

from edgekit.errors import ProfileError, ToolFailedError

TIMEOUT_S = 120.0
_USAGE = 2


class Platform(msgspec.Struct, frozen=True):
    """`profiles` goes from the profile itself to the most general it extends; a bundle for any of them runs here."""

    profiles: tuple[str, ...]
    overlap: bool
    isa: tuple[str, ...]
    engines: dict[str, str]

    @property
    def profile(self) -> str:
        return self.profiles[0]


async def find(profile: str | None) -> Platform:
    """The platform with the given profile, or the most specific shipped one that fits.

    Raises: ProfileError for a profile that cannot be used; ToolFailedError if the child fails.
    """
    words = [sys.executable, "-m", "device_agent.probe", *(["--profile", profile] if profile else [])]
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    except TimeoutError as error:
        raise ToolFailedError(f"looking at this machine took longer than {TIMEOUT_S:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
    told = errors.decode("utf-8", "replace").strip()
    if process.returncode == _USAGE:
        raise ProfileError(told)
    if process.returncode != 0:
        raise ToolFailedError(
            f"looking at this machine failed (exit code {process.returncode}): {told[-2000:]}"
        )
    return msgspec.json.decode(output.splitlines()[-1], type=Platform)


def look(profile: str | None) -> Platform:
    """The child's half. Raises: ProfileError."""
    from edgekit import detect, engines
    from edgekit import profile as profiles

    loaded = profiles.load(profile or detect.closest_shipped())
    return Platform(loaded.chain, loaded.overlap, detect.isa(), engines.installed())


def main() -> None:
    parser = argparse.ArgumentParser(description="What this machine is; started by 'edgekit agent'.")
    parser.add_argument("--profile")
    try:
        platform = look(parser.parse_args().profile)
    except ProfileError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(_USAGE) from None
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(platform) + b"\n")
    sys.stdout.flush()
    # Skips interpreter teardown, where some engines crash after a clean run.
    os._exit(0)


if __name__ == "__main__":
    main()
