"""A model with buckets: one loaded model for each size, behind the protocol of a single one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgekit import buckets as rules
from edgekit.manifest import Buckets
from edgekit.tensors import Array

if TYPE_CHECKING:  # the package knows this module
    from edgekit.engines import Model


class BucketedModel:
    """Runs each call in the bucket that it falls into."""

    def __init__(self, buckets: Buckets, models: Mapping[int, "Model"]) -> None:
        self._buckets = buckets
        self._models = models

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs of any admitted size. Raises: InputError for one that no bucket holds; EngineError."""
        size = rules.bucket_of(self._buckets, inputs)
        return self._models[size].run(rules.fitted(self._buckets, inputs, size))

    def close(self) -> None:
        for model in self._models.values():
            model.close()
