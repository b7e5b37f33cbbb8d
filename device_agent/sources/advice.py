"""What is wrong with sources and sinks before anything is read: folders, files and libraries that are not there."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from device_agent.agentfile import (
    AgentFile,
    AnySink,
    AnySource,
    CameraSource,
    FileSink,
    FolderSource,
    MicrophoneSource,
    RtspSource,
)
from edgekit.distribution import extra

_FILES = ("password_file", "ca_file", "cert_file", "key_file", "secret_file")


class Trouble(NamedTuple):
    """`who` has it; `what` it is; `todo`."""

    who: str
    what: str
    todo: str


def examine(file: AgentFile) -> Iterator[Trouble]:
    """What can be seen without connecting to anything or opening a device."""
    for source in file.sources:
        who = f"source {source.name}"
        if isinstance(source, CameraSource | RtspSource) and find_spec("cv2") is None:
            yield Trouble(who, "needs OpenCV, which is not installed", extra("agent", "camera"))
        if isinstance(source, MicrophoneSource) and find_spec("sounddevice") is None:
            yield Trouble(who, "needs sounddevice, which is not installed", extra("agent", "microphone"))
        if isinstance(source, FolderSource) and (problem := _folder_problem(Path(source.path))):
            yield Trouble(who, problem, "make it, or give it to the agent's user")
        if (
            isinstance(source, CameraSource)
            and isinstance(source.device, str)
            and not Path(source.device).exists()
        ):
            yield Trouble(who, f"{source.device}: there is no such device or file", "see: ls /dev/video*")
        yield from _missing(who, source)
    for sink in file.sinks:
        who = f"sink {sink.name}"
        if isinstance(sink, FileSink) and (problem := _folder_problem(Path(sink.path).parent)):
            yield Trouble(who, problem, "make it, or give it to the agent's user")
        yield from _missing(who, sink)


def _folder_problem(path: Path) -> str:
    if not path.is_dir():
        return f"{path}: there is no such folder"
    return "" if os.access(path, os.R_OK | os.W_OK | os.X_OK) else f"{path}: cannot be read and written"


def _missing(who: str, part: AnySource | AnySink) -> Iterator[Trouble]:
    for name in _FILES:
        path = getattr(part, name, "")
        if path and not os.access(path, os.R_OK):
            yield Trouble(
                who, f"{name}: {path} cannot be read", "make the file, readable by the agent's user"
            )
