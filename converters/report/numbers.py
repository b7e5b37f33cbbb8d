"""Figures as a reader wants them: few digits, one unit a column, a real minus sign."""

import math

from edgekit.evidence import OutputEvidence

MINUS = "\N{MINUS SIGN}"
RANGE = "\N{EN DASH}"
# Before a figure of a few samples.
ABOUT = "≈"
TIMES = "\N{MULTIPLICATION SIGN}"
NONE = "\N{EN DASH}"
_SIZES = ("B", "kB", "MB", "GB")


def milliseconds(value: float) -> str:
    """Three significant digits, but no digit below a microsecond."""
    if value <= 0:
        return "0"
    decimals = min(3, max(0, 2 - math.floor(math.log10(value))))
    return f"{value:.{decimals}f}"


def score(value: float) -> str:
    return f"{value:.4f}".replace("-", MINUS)


def signed(value: float) -> str:
    """With its sign; zero has none."""
    text = f"{value:+.4f}"
    return "0.0000" if float(text) == 0 else text.replace("-", MINUS)


def brief(value: float) -> str:
    """Four significant digits at most and three decimals; what is not zero never reads as zero."""
    if value != 0 and abs(value) < 0.0005:
        return f"{value:.0e}".replace("e-0", "e-").replace("-", MINUS)
    decimals = (
        3 if abs(value) < 10 else max(0, 3 - math.floor(math.log10(abs(value)))) if value < math.inf else 0
    )
    return f"{value:.{decimals}f}".replace("-", MINUS)


def decibels(value: float) -> str:
    return f"{value:.1f}".replace("-", MINUS)


def fidelity(found: OutputEvidence) -> str:
    """An output's own figure, or its signal to noise where that is what it fails by."""
    fails_by_noise = found.snr_db is not None and found.floor_db is not None and found.snr_db < found.floor_db
    if found.snr_db is not None and (fails_by_noise or found.metric in ("snr", "sqnr", "snr_db")):
        return f"{decibels(found.snr_db)} dB"
    return brief(found.value)


def small(value: float) -> str:
    """A magnitude, such as a relative error: one digit and its power of ten."""
    if value == 0:
        return "0"
    if value >= 0.01:
        return f"{value:.3f}"
    exponent = math.floor(math.log10(value))
    return f"{value / 10**exponent:.1f} {TIMES} 10{_superscript(exponent)}"


def size(count: float) -> str:
    for unit in _SIZES:
        if count < 1000 or unit == _SIZES[-1]:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError(count)


def in_unit(count: float, unit: str) -> str:
    """Bytes as a number of `unit` without naming it, with the digits that `size` gives."""
    value = count / 1000 ** _SIZES.index(unit)
    return (
        f"{value:.0f}" if unit == "B" or value >= 100 else f"{value:.1f}" if value >= 0.1 else f"{value:.2g}"
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values within an interval, at steps of 1, 2 or 5 times a power of ten."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int = 8) -> list[float]:
    """1, 2 and 5 of every decade; fewer where that is too many."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**decade for decade in decades for factor in factors]
        found = [value for value in found if low <= value <= high]
        if len(found) <= most:
            return found
    return found


def tick(value: float, step: float) -> str:
    """A tick's label with just the decimals that tell it from its neighbours."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    text = f"{value:.{decimals}f}"
    return text.replace("-", MINUS)


def _superscript(exponent: int) -> str:
    digits = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return str(exponent).translate(digits)
