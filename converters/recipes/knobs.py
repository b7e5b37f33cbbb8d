"""What a recipe search may turn: a backend's settings with the values worth trying."""

import msgspec

from edgekit.manifest import Option


class Knob(msgspec.Struct, frozen=True):
    """A setting of `Tuning.settings`. None, the first of `values`, leaves it out: the backend's own default.

    With `only` (another knob's name and value) it is turned only where that knob, which stands before it, has that
    value, or is left out (None).
    """

    name: str
    values: tuple[Option | None, ...]
    only: tuple[str, Option | None] | None = None

    @property
    def is_turned_by_default(self) -> bool:
        """Whether it is turned where the knobs before it are left out."""
        return self.only is None or self.only[1] is None
