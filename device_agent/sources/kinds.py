"""Each kind of source and sink, and the module that has it: one line each. Modules are loaded only where they are used."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from device_agent.agentfile import (
    AnySink,
    AnySource,
    CameraSource,
    FileSink,
    FolderSource,
    MicrophoneSource,
    MqttSink,
    MqttSource,
    RtspSource,
    WebhookSink,
)
from device_agent.sinks.delivery import Sink
from device_agent.sources.feed import Source

_PLACES: dict[type[AnySource | AnySink], tuple[str, str]] = {
    FolderSource: ("device_agent.sources.folder", "Folder"),
    MqttSource: ("device_agent.sources.topics", "Topics"),
    CameraSource: ("device_agent.sources.camera", "Camera"),
    RtspSource: ("device_agent.sources.camera", "Stream"),
    MicrophoneSource: ("device_agent.sources.microphone", "Microphone"),
    FileSink: ("device_agent.sinks.file", "File"),
    MqttSink: ("device_agent.sinks.topic", "Topic"),
    WebhookSink: ("device_agent.sinks.webhook", "Webhook"),
}


def source_of(spec: AnySource, client: str) -> Source:
    """`client` names this device and source to brokers. Raises: FeedError where what it needs is not installed."""
    made: Source = _maker(spec)(spec, client) if isinstance(spec, MqttSource) else _maker(spec)(spec)
    return made


def sink_of(spec: AnySink, source: AnySource, client: str) -> Sink:
    """A sink for answers of `source`. Raises: FeedError."""
    made: Sink = _maker(spec)(spec, source, client) if isinstance(spec, MqttSink) else _maker(spec)(spec)
    return made


def _maker(spec: AnySource | AnySink) -> Callable[..., Any]:
    module, name = _PLACES[type(spec)]
    made: Callable[..., Any] = getattr(import_module(module), name)
    return made
