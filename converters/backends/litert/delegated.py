"""What an external delegate should take of a model: told in the manifest, so that a device sees when it takes less."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from converters.backends import Unsupported
from converters.recipes.recipes import Plan
from converters.source import tflite
from edgekit.manifest import Option
from edgekit.quiet import quietly


def options(model: Path, plan: Plan) -> Mapping[str, Option]:
    """How many operators the plan's delegate must take; nothing for a plan without one. Raises: Unsupported."""
    if plan.constraints.delegate is None:
        return {}
    return {"delegate_operators": _split(model, plan)[0].total()}


def notes(model: Path, plan: Plan) -> tuple[str, ...]:
    """What goes where. Raises: Unsupported if all stays on the CPU."""
    if plan.constraints.delegate is None:
        return ()
    taken, left = _split(model, plan)
    told = f"{plan.constraints.delegate.library} is to take {taken.total()} of {taken.total() + left.total()} operators"
    return (f"{told}; on the CPU: {_listed(left)}" if left else told,)


def _split(model: Path, plan: Plan) -> tuple[Counter[str], Counter[str]]:
    config = plan.constraints.delegate
    assert config is not None
    found = Counter(step.name for step in quietly(lambda: tflite.read(model)).steps)
    taken = Counter({name: count for name, count in found.items() if name in config.operators})
    if not taken:
        raise Unsupported(
            f"{config.library} takes {', '.join(config.operators)}, and the model has none of them: {_listed(found)}"
        )
    return taken, found - taken


def _listed(operators: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in operators.most_common())
