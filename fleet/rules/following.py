"""When a device that is in no rollout changes to what is assigned to it.

Always true
 1. A device with no model gets what is assigned.
 2. What it has by assignment follows the assignment: to the one that holds now, or to no model where none does.
 3. What it has by a rollout it keeps, unless an assignment was made after that: it was away all the while.
"""

from typing import NamedTuple

BY_ASSIGNMENT = "assignment "


class Has(NamedTuple):
    """What a device is to run, on whose account, and since when (wall)."""

    sha256: str
    because: str
    set_at: float


class Assigned(NamedTuple):
    """What is assigned to it, and since when; `sha256` is None where no bundle of that release is for it."""

    sha256: str | None
    set_at: float


def change(has: Has | None, assigned: Assigned | None) -> tuple[bool, str | None]:
    """Whether it changes, and to what (None is no model)."""
    wanted = assigned.sha256 if assigned is not None else None
    if has is None:
        return wanted is not None, wanted
    if assigned is None:
        return has.because.startswith(BY_ASSIGNMENT), None
    if wanted is None or wanted == has.sha256:
        return False, has.sha256
    return has.because.startswith(BY_ASSIGNMENT) or has.set_at < assigned.set_at, wanted
