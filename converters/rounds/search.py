"""A search beyond the fixed recipes: which tuning to try next, what is on the Pareto front, and which of it goes on.

Two objectives, both better when small: the loss (what the search half says is lost, clean or shifted, whichever is
more) and the cost (milliseconds where the target's time can be measured here, otherwise megabytes).

Always true
 1. A trial is in the journal the moment it ends, a failed one with its reason; a search that was stopped goes on from
    there, with the trials that were running then.
 2. No tuning is tried twice.
 3. Nothing on the front is beaten by another trial in both objectives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from converters.recipes.knobs import Knob
from converters.recipes.recipes import Tuning
from edgekit.manifest import Option

LABEL = "search"
# Candidates that come out of a search.
FINALISTS = 3
# Numbers of the worst layers that may stay in float.
FLOAT_LAYERS = (0, 1, 2, 3, 5, 8)
# Trials by chance before the sampler models anything.
_BLIND = 6
# Suggestions that were tried before, after which chance takes over, and after which a space counts as exhausted.
_SURE = 3
_PATIENCE = 60
_TRIAL = "trial"


class Space(msgspec.Struct, frozen=True):
    """One recipe that may be tuned: its knobs, and its layers that lose most, worst first."""

    recipe: str
    knobs: tuple[Knob, ...]
    layers: tuple[str, ...] = ()


class Trial(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was tried. `number` counts from 1 (0: a fixed recipe, which is known anyway); `holds`: the contract, on the
    search half. Without figures, `failure` says why.
    """

    number: int
    recipe: str
    tuning: Tuning
    loss: float | None = None
    cost: float | None = None
    holds: bool = False
    failure: str = ""

    @property
    def figures(self) -> tuple[float, float] | None:
        return None if self.loss is None or self.cost is None else (self.loss, self.cost)


@dataclass(frozen=True)
class Asked:
    """A suggestion that wants an answer; `handle` is Optuna's."""

    number: int
    recipe: str
    tuning: Tuning
    handle: Any


class Search:
    """Optuna's tree-structured Parzen estimator over several recipes' knobs, kept in a journal.

    Source: Ozaki et al. (2022), "Multiobjective Tree-Structured Parzen Estimator", JAIR 73.
    """

    def __init__(self, spaces: Sequence[Space], journal: Path, seed: int) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        journal.parent.mkdir(parents=True, exist_ok=True)
        self._optuna = optuna
        self._spaces = {space.recipe: space for space in spaces}
        self._study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name="search",
            directions=["minimize", "minimize"],
            load_if_exists=True,
        )
        for stopped in self._study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
            self._study.tell(stopped.number, state=optuna.trial.TrialState.FAIL)
        # Another stream of chance than the one that made what is known already.
        stream = seed + len(self._study.get_trials(deepcopy=False))
        self._modelled = optuna.samplers.TPESampler(seed=stream, n_startup_trials=_BLIND)
        self._blind = optuna.samplers.RandomSampler(seed=stream)
        self._pending: list[Asked] = []

    @property
    def trials(self) -> list[Trial]:
        """What is known, in the order of numbers, fixed recipes first."""
        stored = [
            trial.user_attrs[_TRIAL]
            for trial in self._study.get_trials(deepcopy=False)
            if _TRIAL in trial.user_attrs
        ]
        return sorted(msgspec.convert(stored, list[Trial]), key=lambda trial: trial.number)

    def knows(self, trial: Trial) -> None:
        """Take in a fixed recipe's figures, which cost nothing. One without a space teaches the sampler nothing; a trial
        has to beat it all the same.
        """
        choices = self._choices(trial.recipe)
        parameters = {
            name: trial.recipe if name == "recipe" else values[0] for name, values in choices.items()
        }
        category = self._optuna.distributions.CategoricalDistribution
        self._study.add_trial(
            self._optuna.trial.create_trial(
                params=parameters,
                distributions={name: category(values) for name, values in choices.items()},
                values=trial.figures,
                state=self._optuna.trial.TrialState.COMPLETE
                if trial.figures
                else self._optuna.trial.TrialState.FAIL,
                user_attrs={_TRIAL: msgspec.to_builtins(trial)},
            )
        )

    def _choices(self, recipe: str) -> dict[str, tuple[Option | None, ...]]:
        """What is decided of a fixed recipe, its defaults first."""
        space = self._spaces.get(recipe)
        if space is None:
            return {}
        found: dict[str, tuple[Option | None, ...]] = {"recipe": tuple(self._spaces)}
        found |= {f"{recipe} {knob.name}": knob.values for knob in space.knobs if knob.is_turned_by_default}
        if _counts(space):
            found[f"{recipe} float layers"] = _counts(space)
        return found

    def ask(self) -> Asked | None:
        """A tuning that was not tried yet; None where there seems to be none left."""
        known = self.trials
        taken: list[Trial | Asked] = [*known, *self._pending]
        tried = {_identity(item.recipe, item.tuning) for item in taken}
        number = 1 + max((item.number for item in taken), default=0)
        for attempt in range(_PATIENCE):
            # A sampler that is sure of itself says the same again and again.
            self._study.sampler = self._modelled if attempt < _SURE else self._blind
            handle = self._study.ask()
            recipe = handle.suggest_categorical("recipe", tuple(self._spaces))
            tuning = _suggested(self._spaces[recipe], handle, f"{LABEL}{number}")
            if _identity(recipe, tuning) not in tried:
                asked = Asked(number, recipe, tuning, handle)
                self._pending.append(asked)
                return asked
            self._study.tell(handle, state=self._optuna.trial.TrialState.FAIL)
        return None

    def tell(self, asked: Asked, trial: Trial) -> None:
        self._pending.remove(asked)
        asked.handle.set_user_attr(_TRIAL, msgspec.to_builtins(trial))
        if trial.figures is None:
            self._study.tell(asked.handle, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(asked.handle, trial.figures)


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other beats in both objectives, cheapest first; of equals, the one tried first."""
    found: list[Trial] = []
    having = [trial for trial in trials if trial.figures is not None]
    for trial in sorted(having, key=lambda item: (item.cost, item.loss, item.number)):
        if not found or _loss(trial) < _loss(found[-1]):
            found.append(trial)
    return found


def finalists(trials: Sequence[Trial]) -> list[Trial]:
    """Of the front, what holds the contract, cheapest first; where nothing does, what loses least. Fixed recipes are
    candidates anyway.
    """
    new = [trial for trial in front(trials) if trial.number]
    return [trial for trial in new if trial.holds][:FINALISTS] or new[-1:]


def told(trial: Trial | Asked) -> str:
    """What is special about a tuning, for a person: `calibration=mse, 2 layers float`."""
    parts = [f"{name}={value}" for name, value in trial.tuning.settings.items()]
    count = len(trial.tuning.float_layers)
    if count:
        parts.append(f"{count} layer{'s' if count > 1 else ''} float")
    return ", ".join(parts) or "defaults"


def _suggested(space: Space, handle: Any, label: str) -> Tuning:
    settings: dict[str, Option] = {}
    for knob in space.knobs:
        if knob.only is not None and settings.get(knob.only[0]) != knob.only[1]:
            continue
        value = handle.suggest_categorical(f"{space.recipe} {knob.name}", knob.values)
        if value is not None:
            settings[knob.name] = value
    counts = _counts(space)
    count = handle.suggest_categorical(f"{space.recipe} float layers", counts) if counts else 0
    return Tuning(label, space.layers[:count], settings)


def _counts(space: Space) -> tuple[int, ...]:
    """All layers in float would be the float recipe."""
    return tuple(count for count in FLOAT_LAYERS if count < len(space.layers))


def _identity(recipe: str, tuning: Tuning) -> bytes:
    return msgspec.json.encode([recipe, tuning.settings, tuning.float_layers], order="deterministic")


def _loss(trial: Trial) -> float:
    assert trial.loss is not None
    return trial.loss
