"""Logs: one line per event on standard error, for people or (`--log-json`) for machines. Secrets are never given."""

import json
import logging
import sys
import time
from typing import Any

_LOGGER = logging.getLogger("edgekit.agent")


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        fields = " ".join(f"{key}={_told(value)}" for key, value in _fields(record).items())
        return f"{stamp} {record.levelname.lower():7} {record.getMessage()} {fields}".rstrip()


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        event = {"time": stamp, "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps({**event, **_fields(record)}, default=str)


def set_up(*, as_json: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else _Text())
    _LOGGER.handlers[:] = [handler]
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False


def set_level(level: str) -> None:
    """`debug`, `info` or `warning`: what is logged from now on."""
    _LOGGER.setLevel(level.upper())


def detail(what: str, **fields: Any) -> None:
    """What is of interest only while somebody looks for something."""
    _LOGGER.debug(what, extra={"fields": fields})


def event(what: str, **fields: Any) -> None:
    _LOGGER.info(what, extra={"fields": fields})


def trouble(what: str, **fields: Any) -> None:
    _LOGGER.warning(what, extra={"fields": fields})


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _told(value: Any) -> str:
    text = " ".join(str(value).split())
    return json.dumps(text) if " " in text or not text else text
