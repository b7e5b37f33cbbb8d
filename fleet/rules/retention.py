"""How long what is kept: of the past (`fleet.rules.history`), and of the keys that make a report count once.

Pure.
"""

import msgspec

from edgekit.errors import UsageError
from fleet.rules.text import duration, show_duration

_HOUR_S, _DAY_S = 3600.0, 86_400.0
# A key that is gone lets its report count once more, if its device was cut off before it heard of the acknowledgement and
# comes back only now.
LEAST_KEYS_S = 2 * _DAY_S


class Retention(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[history]` of `fleet.toml`; durations as people write them.

    Arms of rollouts and releases: by the minute for `minutes`, then by the hour until `hours`, then by the day until
    `days` have passed. Devices: by the hour for `device_hours`, then by the day until `device_days`.
    """

    minutes: str = "2d"
    hours: str = "30d"
    days: str = "400d"
    device_hours: str = "7d"
    device_days: str = "90d"
    report_keys: str = "14d"
    samples: str = "90d"

    def seconds(self, name: str) -> float:
        """Raises: UsageError."""
        return duration(getattr(self, name), f"[history] {name}")


DEFAULT = Retention()


class Kept(msgspec.Struct, frozen=True):
    """The same in seconds, checked."""

    minutes_s: float
    hours_s: float
    days_s: float
    device_hours_s: float
    device_days_s: float
    report_keys_s: float
    samples_s: float


# (what, at least as long as, or seconds).
_ORDER: tuple[tuple[str, str | float], ...] = (
    ("minutes", _HOUR_S),
    ("hours", "minutes"),
    ("days", "hours"),
    ("device_hours", _HOUR_S),
    ("device_days", "device_hours"),
    ("report_keys", LEAST_KEYS_S),
    ("samples", _HOUR_S),
)


def checked(wanted: Retention) -> Kept:
    """Raises: UsageError for what is no duration, or shorter than what it follows on."""
    found = {name: wanted.seconds(name) for name in wanted.__struct_fields__}
    for name, least in _ORDER:
        bound = found[least] if isinstance(least, str) else least
        if found[name] < bound:
            of = f"{least} = {getattr(wanted, least)!r}" if isinstance(least, str) else show_duration(bound)
            raise UsageError(
                f"[history] {name} = {getattr(wanted, name)!r}: may not be shorter than {of}; write a longer time"
            )
    return Kept(**{f"{name}_s": value for name, value in found.items()})
