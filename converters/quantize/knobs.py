"""What a recipe search may turn: a backend's settings with the values worth trying."""

import msgspec

from edgekit.manifest import Option


class Knob(msgspec.Struct, frozen=True):
    """A setting of `Tuning.settings`. None, the first of `values`, leaves it out: the backend's own default.

    With `only` (another knob's name and value) it is turned only where that knob, which stands before it, has that
    value.
    """

    name: str
    values: tuple[Option | None, ...]
    only: tuple[str, Option] | None = None
