"""What a build's findings are kept under: digests of everything that decides them.

Always true
 1. Plans of one key give the same artifact byte for byte: whatever decides its bytes is in it.
 2. A key is the same in every process of a build, and in later builds.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import msgspec
from msgspec import structs

from converters.backends.litert import vela
from converters.data.datasets import Datasets
from converters.graph import canonical
from converters.keep import own_code
from converters.keep.artifacts import key
from converters.recipes import facts
from converters.recipes.recipes import Plan
from converters.source.project import Project
from converters.source.source import Source
from edgekit import __version__


@dataclass(frozen=True)
class Keys:
    project: Project
    source: Source
    data: Datasets

    def parts(self, plan: Plan) -> dict[str, object]:
        """Everything that decides the artifact's bytes."""
        return {
            "edgekit": __version__,
            "code": own_code.digest(),
            "source": self.source.sha256,
            "inputs": msgspec.to_builtins(self.source.inputs),
            "outputs": msgspec.to_builtins(self.source.outputs),
            "state": msgspec.to_builtins(self.source.state),
            "buckets": msgspec.to_builtins(self.source.buckets),
            "recipe": plan.recipe.name,
            "tuning": msgspec.to_builtins(plan.tuning),
            "constraints": msgspec.to_builtins(plan.constraints),
            "engine": facts.foreign_digest(plan.recipe.engine),
            "tools": self.tools(plan),
            "calibration": self.data.fingerprint if plan.recipe.needs_calibration else "",
            # Which way a conversion goes is decided by its parity on these.
            "feeds": self.data.feeds_fingerprint,
            "preprocess": msgspec.to_builtins(self.project.preprocess)
            if plan.recipe.needs_calibration
            else "",
        }

    def tools(self, plan: Plan) -> dict[str, str]:
        """Versions of what decides the artifact's bytes. Raises: ToolFailedError for one that is missing."""
        return {
            **canonical.tools(self.source),
            **facts.tools(plan.recipe.engine),
            **(vela.tools() if plan.constraints.vela else {}),
        }

    def all_tools(self, plans: Iterable[Plan]) -> dict[str, str]:
        """Of several plans together. Raises: ToolFailedError."""
        return {name: version for plan in plans for name, version in self.tools(plan).items()}

    def artifact(self, plan: Plan) -> str:
        return key(self.parts(plan))

    def conversion(self, plan: Plan) -> str:
        """Plans that differ in what an accelerator's compiler is told share a conversion."""
        return self.artifact(replace(plan, constraints=structs.replace(plan.constraints, vela=None)))

    def run(self, plan: Plan, threads: int) -> str:
        """Of the artifact's outputs, as it is judged."""
        return key({"artifact": self.artifact(plan), "options": plan.judged_options, "threads": threads})
