"""What a loop does not do each time around, by the monotonic clock."""

import time


class Rhythm:
    """When each chore of a loop was begun last."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def is_due(self, chore: str, every_s: float) -> bool:
        """Whether `every_s` have passed since this last was so; always the first time."""
        ticks = time.monotonic()
        if chore in self._last and ticks - self._last[chore] < every_s:
            return False
        self._last[chore] = ticks
        return True

    def again(self, chore: str) -> None:
        """It came to nothing: it is due at once."""
        self._last.pop(chore, None)
