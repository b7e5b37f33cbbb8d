"""The building machine: what it is, and whether what it measures counts for a profile.

Always true
 1. Nothing measured here counts for a profile whose architecture, instruction sets or accelerator are not here.
 2. No more threads are used than there are cores.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from converters.backends.artifact import Artifact
from converters.measure.footing import Footing, footing
from converters.recipes.recipes import Plan
from edgekit import detect, engines
from edgekit.evidence import Where
from edgekit.manifest import EngineSpec
from edgekit.profile import Profile


@dataclass(frozen=True)
class Host:
    """The building machine, and whether what it measures counts for a profile."""

    cpu: str
    isa: tuple[str, ...]
    arch: str
    cores: int
    # Added to that of processes that time: what holds engines to a profile (measure.footing).
    environment: Mapping[str, str] = field(default_factory=dict)

    def matches(self, profile: Profile) -> bool:
        """Same architecture, every instruction set of the profile, and no accelerator that is not here."""
        return profile.arch == self.arch and set(profile.isa) <= set(self.isa) and profile.accelerator is None

    def footing(self, profile: Profile, plans: Iterable[Plan]) -> Footing:
        """On what footing these plans' candidates are timed here for the profile."""
        work = [(plan.recipe.engine, plan.recipe.computes) for plan in plans if not plan.obstacle]
        return footing(profile.isa, self.isa, work)

    def where(self, plan: Plan) -> Where:
        """The origin of what was measured here with this plan."""
        return Where(
            cpu=self.cpu,
            isa=self.isa,
            engine=plan.recipe.engine,
            engine_version=engines.get(plan.recipe.engine).version(),
            threads=self.threads(plan),
        )

    def threads(self, plan: Plan) -> int:
        """What the manifest says, as far as there are cores: more threads than cores measure the scheduler."""
        return min(plan.threads, self.cores)


def this_host() -> Host:
    return Host(detect.cpu_name(), detect.isa(), os.uname().machine, len(os.sched_getaffinity(0)))


def judged_spec(plan: Plan, artifact: Artifact, host: Host) -> EngineSpec:
    """How the engine loads it here, where it is judged."""
    options = {**plan.judged_options, **artifact.options}
    return EngineSpec(plan.recipe.engine, plan.versions, artifact.runs_here, options, host.threads(plan))
