"""A rollout as a TOML file: the fields of `fleet.api.NewRollout`, no others, read and written."""

import json
import tomllib
from pathlib import Path

import msgspec

from edgekit import safe
from edgekit.errors import UsageError
from fleet import api


def read(path: Path) -> api.NewRollout:
    """Raises: UsageError naming the file and the field."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def parse(text: str) -> api.NewRollout:
    """Raises: UsageError."""
    try:
        return msgspec.convert(tomllib.loads(text), api.NewRollout)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"no TOML: {error}") from error
    except msgspec.ValidationError as error:
        fields = ", ".join(api.NewRollout.__struct_fields__)
        raise UsageError(f"{error}; the fields are {fields}") from error


def write(wanted: api.NewRollout) -> str:
    """The file that is read as this; what is left at its default is left out, a dry run is never kept."""
    default = api.NewRollout(release="", to="")
    lines = []
    for name in api.NewRollout.__struct_fields__:
        value = getattr(wanted, name)
        if name != "dry_run" and (value != getattr(default, name) or name in ("release", "to")):
            lines.append(f"{name} = {_value(value)}")
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    # A JSON string is a TOML one, but for DEL, which TOML wants escaped too; and it is shown on terminals.
    return safe.toml(json.dumps(value, ensure_ascii=False))
