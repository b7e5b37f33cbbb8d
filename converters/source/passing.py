"""A model that is loaded for each call, so that nothing of it is held between calls."""

from collections.abc import Callable, Mapping

from edgekit.engines import Model
from edgekit.tensors import Array


class PassingModel:
    """For models whose weights are mapped from a file: loading takes milliseconds, and what stays in memory would be as
    large as the file, in every process of a build.
    """

    def __init__(self, load: Callable[[], Model]) -> None:
        """Raises: EngineError, now, for what cannot be loaded."""
        self._load = load
        load().close()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises: EngineError."""
        model = self._load()
        try:
            return model.run(inputs)
        finally:
            model.close()

    def close(self) -> None:
        """Nothing is open."""
