"""Which engines there are, by name, without loading one.

Always true
 1. What stands in EdgeKit's own folders is found by its file's name: no list is kept of it.
 2. What other installed distributions offer, as entry points, is looked up only for a name that the folders do not have
    (reading the metadata of everything that is installed takes some 20 ms), once in a process.
 3. A distribution cannot take the name of one of EdgeKit's own engines, and where two bring the same name, neither is used.
 4. Nothing found here is imported here, and neither is numpy.
"""

import importlib.util
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from edgekit.errors import EngineMissingError


@dataclass(frozen=True)
class Offer:
    """A module, and the distribution that it came with; empty for EdgeKit's own."""

    module: str
    distribution: str = ""
    # Another distribution that brings the same name.
    rival: str = ""


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
        """What other distributions offer."""
        # Takes as long to import as all else here.
        from importlib.metadata import entry_points

        found: dict[str, Offer] = {}
        for entry in entry_points(group=self._group):
            name = entry.dist.name if entry.dist else ""
            other = found.get(entry.name)
            found[entry.name] = replace(other, rival=name) if other else Offer(entry.value, name)
        return {name: offer for name, offer in found.items() if name not in self.own}

    def names(self) -> tuple[str, ...]:
        """All names, EdgeKit's own first."""
        return (*self.own, *sorted(self.offered))

    def find(self, name: str) -> Offer | None:
        """Where `name` is, if anywhere. Raises: EngineMissingError where two distributions bring it."""
        if name in self.own:
            return Offer(f"{self._package}.{name}")
        offer = self.offered.get(name)
        if offer and offer.rival:
            raise EngineMissingError(
                f"{offer.distribution} and {offer.rival} both bring an engine {name!r}; uninstall one of them"
            )
        return offer


# Modules with an `ENGINE`: what runs a model.
ADAPTERS = Registry("edgekit.engines", "edgekit.engines", of_packages=False)
# Packages with a module `facts` and a module `backend`: what makes a model. Found without the converters, if they are there.
BACKENDS = Registry("converters.backends", "edgekit.backends", of_packages=True)
