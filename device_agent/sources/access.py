"""What the process of a source may reach: just what `agent.toml` names for it and its sinks. Pure."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from device_agent.agentfile import (
    AnySink,
    AnySource,
    CameraSource,
    FileSink,
    FolderSource,
    MqttSink,
    MqttSource,
    RtspSource,
    WebhookSink,
)

_PORTS = {"mqtt": 1883, "mqtts": 8883, "rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
_READ = ("password_file", "ca_file", "cert_file", "key_file", "secret_file")


# What large native libraries decode, and may come from anywhere.
_DECODED = (CameraSource, RtspSource)


class Access(NamedTuple):
    readable: tuple[Path, ...]
    writable: tuple[Path, ...]
    ports: tuple[int, ...]


def is_apart(source: AnySource) -> bool:
    """Whether its process runs as the workers' user, where there is one. What reads and moves files of other programs has the
    agent's own user, whom these give their folders to; so has a microphone, which workers may not hear.
    """
    return isinstance(source, _DECODED)


def host_and_port(url: str) -> tuple[str, int]:
    """Of an address that `agentfile` has checked."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or _PORTS[parts.scheme]


def needed(source: AnySource, sinks: Sequence[AnySink], own: Path) -> Access:
    """`own` is the source's folder in the state folder."""
    parts = (source, *sinks)
    readable = [Path(path) for part in parts for name in _READ if (path := getattr(part, name, ""))]
    writable = [own]
    ports: set[int] = set()
    for part in parts:
        if isinstance(part, FolderSource):
            writable.append(Path(part.path))
        elif isinstance(part, FileSink):
            writable.append(Path(part.path).parent)
        elif isinstance(part, MqttSource | MqttSink):
            ports.add(host_and_port(part.broker)[1])
        elif isinstance(part, RtspSource | WebhookSink):
            ports.add(host_and_port(part.url)[1])
        elif isinstance(part, CameraSource) and isinstance(part.device, str):
            readable.append(Path(part.device))
    return Access(tuple(readable), tuple(writable), tuple(sorted(ports)))
