"""Intervals of what was counted or measured. Pure."""

import math

# Of the normal distribution, for 95 %.
Z95 = 1.959964


def of_share(found: float, of: int, z: float = Z95) -> tuple[float, float]:
    """The 95 % interval of a share of which `found` of `of` were seen; (0, 1) where nothing was.

    Source: Wilson (1927), "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22.
    """
    if of <= 0:
        return 0.0, 1.0
    share = found / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    reach = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    # At the ends the formula meets 0 and 1 but for rounding.
    low = 0.0 if found <= 0 else max(0.0, middle - reach)
    return low, 1.0 if found >= of else min(1.0, middle + reach)
