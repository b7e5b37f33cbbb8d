"""Durations as people say them."""

_UNITS = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))


def span(seconds: float) -> str:
    """The two largest units: `45s`, `12m 30s`, `3h 5m`, `2d 4h`."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{unit}" if count else "")
    told = [part for part in parts[:2] if part]
    return " ".join(told) or "0s"
