"""Which candidates a profile gets: the recipes of its engines (`recipes.facts`), and what its keys make of them.

A candidate may depart from its recipe's defaults in a `Tuning`, whose label then follows the name:
`openvino/static-int8+mixed` is `openvino/static-int8` with some layers left in float.

A profile in, recipes with their constraints out; nothing else decides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import msgspec

from converters.recipes import facts
from converters.recipes.recipe import AS_IS, DELEGATE, ETHOS, KEPT, Recipe
from edgekit.errors import ProfileError, UsageError
from edgekit.manifest import Option
from edgekit.profile import Precision, Profile

# More threads than this gain nothing on models of this size and starve the rest of the board.
MAX_THREADS = 4


class VelaConfig(msgspec.Struct, frozen=True):
    """What Vela compiles for: an Ethos-U, and sections of Vela's configuration file."""

    accelerator: str
    system_config: str
    memory_mode: str


class DelegateConfig(msgspec.Struct, frozen=True):
    """An external delegate's library, and the operators that it takes."""

    library: str
    operators: tuple[str, ...]


class Constraints(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a profile asks of an artifact's bytes; two profiles that ask the same share one conversion.

    `vela` compiles the artifact that the other constraints make; `delegate` takes operators of it on the device.
    """

    symmetric_activations: bool
    per_channel: bool
    reduce_range: bool
    accelerator: str = ""
    vela: VelaConfig | None = None
    signed_activations: bool = False
    delegate: DelegateConfig | None = None


class Tuning(msgspec.Struct, frozen=True):
    """How a candidate departs from its recipe's defaults.

    `float_layers` stay in float; the names are the engine's own, as its backend's `sensitivity` gives them. `settings`
    are named numbers, switches and texts of the engine's quantizer (a percentile, a bias correction).
    """

    label: str = ""
    float_layers: tuple[str, ...] = ()
    settings: dict[str, Option] = {}


PLAIN = Tuning()


class Loading(msgspec.Struct, frozen=True):
    """A way in which an engine loads the same bytes: `threads`, and `options` beside the plan's."""

    threads: int
    options: dict[str, Option] = {}

    @property
    def told(self) -> str:
        words = [f"{name} {value}" for name, value in self.options.items()]
        return ", ".join([f"{self.threads} thread{'s' if self.threads > 1 else ''}", *words])


@dataclass(frozen=True)
class Plan:
    """One candidate to make. `options` go into the manifest; `judged_options` differ where the target's device is
    not here.
    """

    recipe: Recipe
    constraints: Constraints
    versions: str
    options: dict[str, Option]
    judged_options: dict[str, Option]
    threads: int
    notes: tuple[str, ...] = ()
    tuning: Tuning = PLAIN
    # Why it cannot be made; empty if it can.
    obstacle: str = ""
    # Whether a model with data-dependent shapes inside is refused.
    static_shapes_only: bool = False
    # What it is made of is smaller than this already, which it may not exceed; 0 is no limit.
    most_bytes: int = 0
    # Whether it is timed in the other ways in which its engine may load it as well (`other_loadings`).
    tries_loadings: bool = False
    # Options of the way that it is settled on, which are among the others already.
    layout: Mapping[str, Option] = field(default_factory=dict)

    def loaded(self, loading: Loading) -> "Plan":
        """Settled on that way."""
        return replace(
            self,
            threads=loading.threads,
            options={**self.options, **loading.options},
            judged_options={**self.judged_options, **loading.options},
            tries_loadings=False,
            layout=loading.options,
        )

    @property
    def is_accelerated(self) -> bool:
        """Whether something other than a CPU computes on the device."""
        return bool(self.constraints.accelerator or self.constraints.vela)

    @property
    def name(self) -> str:
        """The recipe's name, and what the tuning adds to it."""
        return self.recipe.name + (f"+{self.tuning.label}" if self.tuning.label else "")


def catalogue() -> Mapping[str, Recipe]:
    """Every recipe there is, by name."""
    return {recipe.name: recipe for engine in facts.names() for recipe in facts.of(engine).recipes}


def check_patterns(patterns: Sequence[str]) -> None:
    """Raises: UsageError for a pattern that no recipe matches."""
    if not patterns:
        return
    known = catalogue()
    names = (*known, *(f"{engine}/as-is" for engine in facts.names()))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"--recipe {pattern}: there is no such recipe; there are {', '.join(known)}")


def plans(profile: Profile, patterns: Sequence[str] = ()) -> list[Plan]:
    """Candidates for a profile, its preferred engine first; with patterns, those whose name matches one.

    Raises: ProfileError for an engine that runs models here, but that nothing here makes any for.
    """
    unmade = [engine for engine in profile.engines if not facts.has(engine)]
    if unmade:
        raise ProfileError(
            f"{profile.name}: engines.{unmade[0]}: there is no converter for it here; leave it out, or install one"
        )
    accelerator = profile.accelerator.kind if profile.accelerator else None
    return [
        _plan(profile, recipe, profile.engines[engine])
        for engine in profile.engines
        for recipe in facts.of(engine).recipes
        if recipe.scheme != KEPT
        and recipe.precision in profile.precisions
        and (recipe.remainder == "fp32" or recipe.remainder in profile.precisions)
        and (not recipe.isa or set(recipe.isa) & set(profile.isa))
        and accelerator in recipe.accelerators
        and (not patterns or any(fnmatchcase(recipe.name, pattern) for pattern in patterns))
    ]


def as_is(
    profile: Profile,
    engine: str,
    precision: Precision,
    what: str,
    patterns: Sequence[str] = (),
    *,
    suffix: str = "",
    stored: Precision | None = None,
) -> list[Plan]:
    """The candidate that is a source in `engine`'s own format itself, and those of engines that read files of that `suffix`
    themselves (a float one in every recipe, an int8 one with its integers kept), `engine` among them. `stored` is the
    precision of its weights. Other engines get none, which a note on the first says; where a profile has no engine that reads
    the file, each says why.
    """
    readers = [name for name in profile.engines if name == engine or suffix in facts.of(name).reads]
    found: list[Plan] = []
    for name in readers or profile.engines:
        if name != engine and readers:
            found += _read_by(profile, name, precision, patterns)
            continue
        # In float, as it stores them, they would be the file again.
        same = {precision, stored or precision}
        anew = [
            plan
            for plan in (
                _read_by(profile, name, precision, patterns) if suffix in facts.of(name).reads else ()
            )
            if plan.recipe.scheme != "float" or plan.recipe.precision not in same
        ]
        plan = _plan(profile, Recipe(f"{name}/as-is", name, precision, AS_IS), profile.engines[name])
        if not readers:
            plan = replace(plan, obstacle=f"the source is {what}, which {name} does not read")
        plan = _within(profile, plan)
        is_asked = not patterns or any(fnmatchcase(plan.name, pattern) for pattern in patterns)
        # What the profile does not compute in needs no telling where it gets something else.
        if is_asked and not (plan.obstacle and anew):
            found.append(plan)
        found += anew
    others = " and ".join(name for name in profile.engines if name not in readers)
    if others and readers and found:
        told = f"no candidate for {others}: of this profile only {' and '.join(readers)} read {what}"
        found[0] = replace(found[0], notes=(*found[0].notes, told))
    return found


def of_quantized(
    profile: Profile, what: str, patterns: Sequence[str] = (), *, is_widened: bool, most_bytes: int
) -> list[Plan]:
    """Candidates of an ONNX file that is quantized already.

    The file itself for engines that run it, and what an engine's own reader keeps of its integers. Where weights alone
    are quantized (`is_widened`), also every int8 recipe, since its float form is exact; an engine that cannot take the
    file gets those anyway where no other of the profile can. `most_bytes` is what one made anew may weigh.
    """
    takers = [name for name in profile.engines if ".onnx" in facts.of(name).takes_as_is]
    anew = [
        replace(plan, most_bytes=most_bytes if takers else 0)
        for plan in plans(profile, patterns)
        if plan.recipe.precision == "int8"
    ]
    found: list[Plan] = []
    for name, versions in profile.engines.items():
        own = Recipe(f"{name}/as-is", name, "int8", AS_IS)
        kept = [recipe for recipe in facts.of(name).recipes if recipe.scheme == KEPT]
        direct = [_plan(profile, recipe, versions) for recipe in ([own] if name in takers else kept)]
        if takers and name not in takers:
            direct = [replace(plan, most_bytes=most_bytes) for plan in direct]
        if not direct and not is_widened and takers:
            obstacle = (
                f"the source is {what}, which {name} cannot take as it is and {takers[0]} can; for {name}, build from the"
                " float model that it was made of"
            )
            direct = [replace(_plan(profile, own, versions), obstacle=obstacle)]
        found += [
            _within(profile, plan)
            for plan in direct
            if not patterns or any(fnmatchcase(plan.name, pattern) for pattern in patterns)
        ]
        if is_widened or not takers:
            found += [plan for plan in anew if plan.recipe.engine == name]
    return found


def _read_by(profile: Profile, engine: str, precision: Precision, patterns: Sequence[str]) -> list[Plan]:
    if precision != "int8":
        return [plan for plan in plans(profile, patterns) if plan.recipe.engine == engine]
    kept = [
        _plan(profile, recipe, profile.engines[engine])
        for recipe in facts.of(engine).recipes
        if recipe.scheme == KEPT
    ]
    return [
        _within(profile, plan)
        for plan in kept
        if not patterns or any(fnmatchcase(plan.name, pattern) for pattern in patterns)
    ]


def _within(profile: Profile, plan: Plan) -> Plan:
    """Refused where the profile does not compute in the plan's precision."""
    if plan.obstacle or plan.recipe.precision in profile.precisions:
        return plan
    return replace(
        plan,
        obstacle=f"the source computes in {plan.recipe.precision}; {profile.name} takes {', '.join(profile.precisions)}",
    )


def threads_for(profile: Profile) -> int:
    return min(profile.cores, MAX_THREADS)


def other_loadings(threads: int, layouts: Sequence[Mapping[str, Option]] = ()) -> tuple[Loading, ...]:
    """Ways beside that number of threads alone which may be faster. Fewer threads: to hand a small model to many takes longer
    than to run it. `layouts` are options by which the engine lays the model's memory out in another way.
    """
    numbers = [threads, *(number for number in (1, 2) if number < threads)]
    ways = [Loading(number, dict(options)) for options in ({}, *layouts) for number in numbers]
    return tuple(ways[1:])


def _plan(profile: Profile, recipe: Recipe, versions: str) -> Plan:
    known = facts.of(recipe.engine)
    quantization = profile.quantization
    accelerator = profile.accelerator.kind if profile.accelerator else ""
    has_int8_weights = recipe.precision == "int8" and recipe.scheme not in (AS_IS, KEPT)
    is_int8 = has_int8_weights and recipe.scheme != "weights"
    constraints = Constraints(
        symmetric_activations=is_int8 and quantization.symmetric_activations,
        per_channel=has_int8_weights and quantization.per_channel,
        reduce_range=is_int8 and quantization.reduce_range,
        accelerator=accelerator,
        vela=_vela(profile),
        signed_activations=is_int8 and profile.arch in known.signed_activations,
        delegate=_delegate(profile),
    )
    options = known.options.of(recipe)
    judged = dict(options)
    notes: tuple[str, ...] = ()
    if device := known.devices.get(accelerator):
        options, judged, notes = device.options.of(recipe), dict(device.judged), (device.note,)
    if constraints.delegate is not None and profile.accelerator is not None:
        own = {f"delegate.{key}": value for key, value in sorted(profile.accelerator.options.items())}
        options = {**options, "delegate": constraints.delegate.library, **own}
    return Plan(
        recipe,
        constraints,
        versions,
        options,
        judged,
        threads_for(profile),
        notes,
        static_shapes_only=quantization.static_shapes_only,
        tries_loadings=not accelerator,
    )


def _delegate(profile: Profile) -> DelegateConfig | None:
    unit = profile.accelerator
    if unit is None or unit.kind != DELEGATE:
        return None
    return DelegateConfig(unit.delegate, unit.operators)


def _vela(profile: Profile) -> VelaConfig | None:
    unit = profile.accelerator
    if unit is None or unit.kind != ETHOS:
        return None
    return VelaConfig(unit.config, unit.system_config, unit.memory_mode)
