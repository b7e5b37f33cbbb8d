"""`agent.toml`: what a device reads, and where its answers go.

It lies in the state folder, or where `edgekit agent run --config` says. Relative paths start from its folder.

Always true
 1. An unknown key or an impossible value is refused with the file, the key and what would be right.
 2. No secret stands in it: passwords and keys are files that it names. An address of a camera may hold a password, and the
    file is kept from workers for that.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from device_agent import budget
from device_agent.budget import NO_LIMITS, Budget, Limits
from edgekit.errors import UsageError

FILE_NAME = "agent.toml"

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
Deployment = Annotated[str, Meta(pattern=r"^([a-z0-9][a-z0-9._-]{0,63})?$")]
Text = Annotated[str, Meta(min_length=1, max_length=1024)]
Topic = Annotated[str, Meta(pattern=r"^[^\x00$][^\x00]{0,1023}$")]
Megabytes = Annotated[int, Meta(ge=1, le=10_240)]
Frames = Annotated[float, Meta(gt=0, le=1000)]
Pixels = Annotated[int, Meta(ge=1, le=16_384)]
Colour = Literal["rgb", "grey"]
_T = TypeVar("_T", bound=msgspec.Struct)


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """`name` is the part's own on this device."""

    name: Name


class _Source(_Part, frozen=True, kw_only=True):
    """`deployment` may be empty where the device has one. `sinks` None means all of them. Of answers that no sink has
    taken yet, at most `backlog_mb` are kept on disk.
    """

    deployment: Deployment = ""
    sinks: tuple[Name, ...] | None = None
    backlog_mb: Megabytes = 64


class _Broker(_Part, frozen=True, kw_only=True):
    """`broker` is mqtt://HOST:PORT or mqtts://HOST:PORT; the others are files, but for the user's name."""

    broker: str = "mqtt://127.0.0.1:1883"
    username: str = ""
    password_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


class FolderSource(_Source, frozen=True, kw_only=True, tag="folder"):
    """A file is read once its size and time have not changed for `settle_s`; the folder is looked at every `poll_s`."""

    path: Text
    settle_s: Annotated[float, Meta(ge=0, le=3600)] = 2.0
    poll_s: Annotated[float, Meta(ge=0.05, le=3600)] = 1.0


class MqttSource(_Broker, frozen=True, kw_only=True, tag="mqtt"):
    """`in_flight` is how many messages the broker sends ahead; `content_type` says what those hold that do not. The first
    three are as every source has them.
    """

    deployment: Deployment = ""
    sinks: tuple[Name, ...] | None = None
    backlog_mb: Megabytes = 64
    topics: Annotated[tuple[Topic, ...], Meta(min_length=1, max_length=64)]
    in_flight: Annotated[int, Meta(ge=1, le=1000)] = 8
    content_type: Text = "application/json"


class _Frames(_Source, frozen=True, kw_only=True):
    """At most `fps` frames a second go to the model, and `queue` wait for it; beyond that the oldest go."""

    fps: Frames | None = None
    queue: Annotated[int, Meta(ge=1, le=64)] = 1
    colour: Colour = "rgb"


class CameraSource(_Frames, frozen=True, kw_only=True, tag="camera"):
    """`device` is a number (/dev/videoN), a device's path, or a video file; that one plays once, or for ever."""

    device: Annotated[int, Meta(ge=0, le=255)] | Text = 0
    width: Pixels | None = None
    height: Pixels | None = None
    repeat: bool = False


class RtspSource(_Frames, frozen=True, kw_only=True, tag="rtsp"):
    url: Text


class MicrophoneSource(_Source, frozen=True, kw_only=True, tag="microphone"):
    """A window of `window_s` seconds begins every `hop_s` (by default where the last one ended)."""

    sample_rate: Annotated[int, Meta(ge=1000, le=384_000)]
    device: Annotated[int, Meta(ge=0)] | Text | None = None
    channels: Annotated[int, Meta(ge=1, le=32)] = 1
    window_s: Annotated[float, Meta(gt=0, le=600)] = 1.0
    hop_s: Annotated[float, Meta(gt=0, le=600)] | None = None
    queue: Annotated[int, Meta(ge=1, le=64)] = 4


class FileSink(_Part, frozen=True, kw_only=True, tag="file"):
    """JSON lines. At `max_mb` the file becomes PATH.1, and so on up to PATH.`keep`."""

    path: Text
    max_mb: Megabytes = 64
    keep: Annotated[int, Meta(ge=1, le=1000)] = 4


class MqttSink(_Broker, frozen=True, kw_only=True, tag="mqtt"):
    """`{source}` and `{deployment}` in the topic are filled in."""

    topic: Annotated[str, Meta(pattern=r"^[^\x00$#+][^\x00#+]{0,1023}$")]
    retain: bool = False


class WebhookSink(_Part, frozen=True, kw_only=True, tag="webhook"):
    """POSTs go to `url` as they are; with `secret_file` they are signed (Standard Webhooks)."""

    url: Text
    secret_file: str = ""
    ca_file: str = ""
    timeout_s: Annotated[float, Meta(gt=0, le=300)] = 10.0


AnySource = FolderSource | MqttSource | CameraSource | RtspSource | MicrophoneSource
AnySink = FileSink | MqttSink | WebhookSink


def kind_of(part: AnySource | AnySink) -> str:
    """As the file writes it."""
    return str(part.__struct_config__.tag)


class GuardTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done about inputs that a bundle's guard finds unfamiliar: `answer` in the place of what the bundle says (empty:
    as it says), `url` who answers those that are passed on.
    """

    answer: Literal["", "flag", "refuse", "pass"] = ""
    url: str = ""
    ca_file: str = ""
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 10.0


class AgentFile(msgspec.Struct, frozen=True):
    """Sources and sinks by the order of the file, and what the link may cost; `path` None where there is no file."""

    path: Path | None = None
    sources: tuple[AnySource, ...] = ()
    sinks: tuple[AnySink, ...] = ()
    budget: Limits = NO_LIMITS
    guard: GuardTable = GuardTable()

    @property
    def secrets(self) -> tuple[Path, ...]:
        """Files that are nobody's business but the sources' and the agent's: itself, and those it names as secret."""
        fields = ("password_file", "key_file", "secret_file")
        named = (getattr(part, field, "") for part in (*self.sources, *self.sinks) for field in fields)
        return tuple(
            path for path in (self.path, *(Path(name) for name in named if name)) if path is not None
        )

    def sinks_of(self, source: AnySource) -> tuple[AnySink, ...]:
        return tuple(sink for sink in self.sinks if source.sinks is None or sink.name in source.sinks)


NO_FILE = AgentFile()

_SOURCES: Mapping[str, type[AnySource]] = {
    "folder": FolderSource,
    "mqtt": MqttSource,
    "camera": CameraSource,
    "rtsp": RtspSource,
    "microphone": MicrophoneSource,
}
_SINKS: Mapping[str, type[AnySink]] = {"file": FileSink, "mqtt": MqttSink, "webhook": WebhookSink}
# Top-level key → the kinds of its tables.
_TABLES: Mapping[str, Mapping[str, type[msgspec.Struct]]] = {"source": _SOURCES, "sink": _SINKS}
# Fields that hold a path, which is made absolute.
_PATHS = ("path", "password_file", "ca_file", "cert_file", "key_file", "secret_file")
_SCHEMES: Mapping[str, tuple[str, ...]] = {
    "broker": ("mqtt", "mqtts"),
    "rtsp": ("rtsp", "rtsps"),
    "webhook": ("http", "https"),
}


def read(state: Path, chosen: Path | None = None) -> AgentFile:
    """The file that `chosen` names, or the state folder's if it has one.

    Raises: UsageError naming the file, the key and what would be right.
    """
    path = (chosen or state / FILE_NAME).absolute()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if chosen is None:
            return NO_FILE
        raise UsageError(f"{path}: there is no such file; --config names an agent.toml") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    try:
        return parse(text, path)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def parse(text: str, path: Path) -> AgentFile:
    """Raises: UsageError naming the key."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"no TOML: {error}") from error
    known = (*_TABLES, "budget", "guard")
    for key in table.keys() - set(known):
        raise UsageError(f"{key}: unknown key; {_hint(key, known)}")
    sources = tuple(_parts(table, "source", _SOURCES, path.parent))
    sinks = tuple(_parts(table, "sink", _SINKS, path.parent))
    for title, parts in (("source", sources), ("sink", sinks)):
        names = [part.name for part in parts]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise UsageError(f"{title} {twice!r}: there are two of that name; give each its own")
    for source in sources:
        _check_sinks(source, sinks)
    return AgentFile(
        path, sources, sinks, _budget(table.get("budget", {})), _guard(table.get("guard", {}), path.parent)
    )


def _guard(given: Any, folder: Path) -> GuardTable:
    known = GuardTable.__struct_fields__
    for key in given.keys() - set(known) if isinstance(given, dict) else ():
        raise UsageError(f"guard: {key}: unknown key; {_hint(key, known)}")
    try:
        table = msgspec.convert(given, GuardTable)
    except msgspec.ValidationError as error:
        raise UsageError(f"guard: {_told(str(error))}") from error
    if table.url:
        try:
            _address("url", table.url, "webhook", "https://example.org/unfamiliar")
        except UsageError as error:
            raise UsageError(f"guard: {error}") from error
        if "@" in urlsplit(table.url).netloc:
            raise UsageError("guard: url: no name and password in the address")
    if table.answer == "pass" and not table.url:
        raise UsageError(
            "guard: answer = 'pass' needs a url that answers, e.g. https://example.org/unfamiliar"
        )
    ca_file = str((folder / table.ca_file).absolute()) if table.ca_file else ""
    return msgspec.structs.replace(table, ca_file=ca_file)


def _budget(given: Any) -> Limits:
    known = Budget.__struct_fields__
    for key in given.keys() - set(known) if isinstance(given, dict) else ():
        raise UsageError(f"budget: {key}: unknown key; {_hint(key, known)}")
    try:
        return budget.limits(msgspec.convert(given, Budget))
    except msgspec.ValidationError as error:
        raise UsageError(f"budget: {_told(str(error))}") from error


def _check_sinks(source: AnySource, sinks: Sequence[AnySink]) -> None:
    known = [sink.name for sink in sinks]
    for name in source.sinks or ():
        if name not in known:
            raise UsageError(
                f"source {source.name!r}: sinks: there is no sink {name!r}; {_hint(name, known)}"
            )
    if not known or source.sinks == ():
        raise UsageError(
            f"source {source.name!r}: its answers go nowhere; add a [[sink]], e.g. kind = 'file', path = 'answers.jsonl'"
        )


def _parts(table: Mapping[str, Any], key: str, kinds: Mapping[str, type[_T]], folder: Path) -> Iterator[_T]:
    given = table.get(key, [])
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise UsageError(f"{key}: write each as a table of its own, under [[{key}]]")
    for number, one in enumerate(given, 1):
        title = f"{key} {one['name']!r}" if isinstance(one.get("name"), str) else f"{key} {number}"
        try:
            yield _part(one, kinds, folder)
        except UsageError as error:
            raise UsageError(f"{title}: {error}") from error


def _part(given: Mapping[str, Any], kinds: Mapping[str, type[_T]], folder: Path) -> _T:
    kind = given.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise UsageError(f"kind: {kind!r} is none; known are {', '.join(kinds)}")
    made = kinds[kind]
    known = ("kind", *made.__struct_fields__)
    for key in given.keys() - set(known):
        raise UsageError(f"{key}: unknown key; {_hint(key, known)}")
    try:
        part = msgspec.convert(given, made)
    except msgspec.ValidationError as error:
        raise UsageError(_told(str(error))) from error
    _check(part)
    absolute = {
        name: str((folder / getattr(part, name)).absolute())
        for name in _PATHS
        if getattr(part, name, "")
    }  # fmt: skip
    if isinstance(part, CameraSource) and isinstance(part.device, str):
        absolute["device"] = str((folder / part.device).absolute())
    return msgspec.structs.replace(part, **absolute)


def _check(part: msgspec.Struct) -> None:
    """What one field alone does not show. Raises: UsageError."""
    if isinstance(part, _Broker):
        _check_broker(part)
    if isinstance(part, RtspSource):
        _address("url", part.url, "rtsp", "rtsp://camera.local:554/stream")
    if isinstance(part, WebhookSink):
        _address("url", part.url, "webhook", "https://example.org/answers")
        if "@" in urlsplit(part.url).netloc:
            raise UsageError("url: no name and password in the address; sign with secret_file instead")
    if isinstance(part, MicrophoneSource) and part.hop_s is not None and part.hop_s > part.window_s:
        raise UsageError(
            f"hop_s: {part.hop_s:g} is more than window_s ({part.window_s:g}): sound would be skipped"
        )
    if isinstance(part, MqttSink):
        fields = set(re.findall(r"\{(.*?)\}", part.topic)) - {"source", "deployment"}
        if fields or part.topic.count("{") != part.topic.count("}"):
            raise UsageError(f"topic: {part.topic!r}: known are {{source}} and {{deployment}}")


def _check_broker(part: _Broker) -> None:
    _address("broker", part.broker, "broker", "mqtt://127.0.0.1:1883")
    if bool(part.cert_file) != bool(part.key_file):
        raise UsageError("cert_file and key_file go together: give both, or none")
    if part.password_file and not part.username:
        raise UsageError("password_file: give the username that it belongs to")
    if (part.ca_file or part.cert_file) and not part.broker.startswith("mqtts:"):
        raise UsageError("ca_file and cert_file mean something with mqtts:// only")


def _address(field: str, url: str, kind: str, example: str) -> None:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in _SCHEMES[kind] and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise UsageError(
            f"{field}: {url!r} is no {' or '.join(_SCHEMES[kind])} address; write e.g. {example}"
        )


def _told(message: str) -> str:
    """The decoder's words with the field first."""
    found = re.fullmatch(r"(.*?) - at `\$\.?(.*)`", message)
    if found is not None:
        return f"{found[2]}: {_RIGHT.get(found[2], found[1])}"
    if missing := re.fullmatch(r"Object missing required field `(.*)`", message):
        return f"{missing[1]}: must be given"
    return message


# Where a pattern would say less.
_RIGHT: Mapping[str, str] = {
    "name": "small letters, digits and '-', at most 40, beginning with a letter or digit",
    "deployment": "the name of a deployment: small letters, digits, '.', '_' and '-'",
    "topic": "a topic to publish to: no '+' or '#', no '$' in front, at most 1024 characters",
}


def _hint(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known) or 'none'}"
