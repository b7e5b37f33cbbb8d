"""Which engines there are, by name, without loading one.

Always true
 1. What stands in EdgeKit's own folders is found by its file's name: no list is kept of it.
 2. What other installed distributions offer, as entry points, is looked up only for a name that the folders do not have
    (reading the metadata of everything that is installed takes some 20 ms), once in a process.
 3. A distribution cannot take the name of one of EdgeKit's own engines, nor two of them the same name.
 4. Nothing found here is imported here, and neither is numpy.
"""

import importlib.util
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from edgekit.errors import EngineMissingError


@dataclass(frozen=True)
class Offer:
    """A module, and the distribution that it came with; empty for EdgeKit's own."""

    module: str
    distribution: str = ""


class Registry:
    """The modules of `package`, or with `of_packages` its subpackages, and what stands under the entry-point `group`.

    A name that begins with an underscore is no engine's.
    """

    def __init__(self, package: str, group: str, *, of_packages: bool) -> None:
        self._package = package
        self._group = group
        self._of_packages = of_packages

    @cached_property
    def own(self) -> tuple[str, ...]:
        """Names in EdgeKit's own folder, sorted."""
        # Imports what is above the package, and not the package.
        spec = importlib.util.find_spec(self._package)
        places = spec.submodule_search_locations if spec else None
        return tuple(
            sorted(
                found.name
                for found in pkgutil.iter_modules(places or ())
                if found.ispkg is self._of_packages and not found.name.startswith("_")
            )
        )

    @cached_property
    def offered(self) -> Mapping[str, Offer]:
        """What other distributions offer. Raises: EngineMissingError where two offer the same name."""
        # Takes as long to import as all else here.
        from importlib.metadata import entry_points

        found: dict[str, Offer] = {}
        for entry in entry_points(group=self._group):
            offer = Offer(entry.value, entry.dist.name if entry.dist else "")
            other = found.setdefault(entry.name, offer)
            if other != offer:
                raise EngineMissingError(
                    f"{other.distribution} and {offer.distribution} both bring an engine {entry.name!r}; uninstall one of them"
                )
        return {name: offer for name, offer in found.items() if name not in self.own}

    def names(self) -> tuple[str, ...]:
        """All names, EdgeKit's own first."""
        return (*self.own, *sorted(self.offered))

    def find(self, name: str) -> Offer | None:
        """Where `name` is, if anywhere."""
        if name in self.own:
            return Offer(f"{self._package}.{name}")
        return self.offered.get(name)


# Modules with an `ENGINE`: what runs a model.
ADAPTERS = Registry("edgekit.engines", "edgekit.engines", of_packages=False)
# Packages with a module `facts` and a module `backend`: what makes a model. Found without the converters, if they are there.
BACKENDS = Registry("converters.backends", "edgekit.backends", of_packages=True)
