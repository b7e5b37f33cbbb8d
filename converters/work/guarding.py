"""The guard of a project: fitted on calibration data, its threshold set on one half of the evaluation data, judged on the other.

Always true
 1. What it is fitted on, what its threshold is set on and what it is judged on share no sample.
 2. With exchangeable samples the chance that a familiar input is caught is at most the stated rate: the threshold is the
    ⌈(n + 1)(1 - rate)⌉-th smallest of n distances, and a build with too few for that ends.
 3. It sees inputs alone, so it is one for all targets and candidates.

Sources: Vovk, Gammerman, Shafer (2005), "Algorithmic Learning in a Random World", ch. 4 (the threshold); Ledoit, Wolf
(2004), "A well-conditioned estimator for large-dimensional covariance matrices", J. Multivariate Anal. 88 (the covariance).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from converters.data import unfamiliar
from converters.data.datasets import SHIFTED, Datasets
from converters.data.shifted import is_signal
from converters.source.project import GuardTable, Project
from converters.source.source import Source
from edgekit import guard, intervals
from edgekit.errors import DataError, ProjectError
from edgekit.evidence import GuardCatch, GuardEvidence
from edgekit.guard import MAX_FEATURES, Familiar
from edgekit.guard_section import Guard
from edgekit.manifest import TensorSpec
from edgekit.samples import Samples, dump_arrays, stacked
from edgekit.tensors import Array

MEMBER = "guard/statistics.npz"
MOST_FITTED, LEAST_FITTED = 2000, 20
GRIDS = (8, 4, 2, 1)
# Of an input's mean spread: what a feature spreads at least, though it never changed in the data.
LEAST_SPREAD = 0.1
# Of the covariance that is taken from no correlation at all, at least.
LEAST_SHRINKAGE = 0.01
Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Fitted:
    """A guard before it is in a bundle, and what was found of it."""

    familiar: Familiar
    threshold: float
    evidence: GuardEvidence


@dataclass
class Guarding:
    project: Project
    source: Source
    data: Datasets

    @property
    def note(self) -> str:
        """What the build found of the guard, for a reader; empty without one."""
        return "" if self.fitted is None else told(self.fitted.evidence)

    @property
    def evidence(self) -> GuardEvidence | None:
        return None if self.fitted is None else self.fitted.evidence

    @cached_property
    def fitted(self) -> Fitted | None:
        """None where the project asks for no guard. Raises: ProjectError, DataError."""
        table = self.project.file.guard
        if table is None:
            return None
        fit, held_out = self._known()
        specs = self._guarded(fit)
        grid = next(grid for grid in GRIDS if self._size(specs, grid) <= MAX_FEATURES or grid == 1)
        familiar = fitted(fit, specs, grid)
        threshold = self._threshold(table, [familiar.distance(each) for each in held_out])
        return Fitted(familiar, threshold, self._judged(table, familiar, threshold, len(fit), len(held_out)))

    def shipped(self, golden: Samples) -> tuple[Guard, dict[str, bytes]] | None:
        """Its section of a manifest and its member, for a bundle with these golden inputs; None without a guard."""
        table, made = self.project.file.guard, self.fitted
        if table is None or made is None:
            return None
        plain, turned = guard.distances(made.familiar, self.source.admitted, self.project.preprocess, golden)
        section = Guard(
            statistics=MEMBER,
            inputs=tuple(spec.name for spec in made.familiar.specs),
            threshold=made.threshold,
            false_alarms=table.false_alarms,
            golden_caught=_caught(plain, made.threshold),
            turned_caught=_caught(turned, made.threshold),
            answer=table.answer,
            grid=made.familiar.grid,
        )
        return section, {MEMBER: dump_arrays(guard.dump(made.familiar, plain, turned))}

    def _known(self) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
        """Ready inputs to fit on, and others to set the threshold on."""
        search = self._ready(self.data.halves[0].samples)
        if self.data.calibration is None:
            return search[::2], search[1::2]
        return list(islice(self.data.calibration(), MOST_FITTED)), search

    def _guarded(self, fit: list[dict[str, Array]]) -> tuple[TensorSpec, ...]:
        """The inputs that say something by their values. Raises: ProjectError, DataError."""
        if len(fit) < LEAST_FITTED:
            raise DataError(
                f"{self.project.where}: guard: {len(fit)} samples to fit it on, {LEAST_FITTED} are needed; give more"
                " calibration data"
            )
        found = tuple(
            spec
            for spec in self.source.admitted
            if spec.name not in self.source.states and _says_something([each[spec.name] for each in fit])
        )
        if not found:
            kinds = ", ".join(spec.describe() for spec in self.source.admitted)
            raise ProjectError(
                f"{self.project.where}: guard: no input is a measurement whose values tell whether it is familiar"
                f" ({kinds}); leave [guard] out"
            )
        return found

    @staticmethod
    def _size(specs: tuple[TensorSpec, ...], grid: int) -> int:
        whole = (np.zeros([dim or 1 for dim in spec.shape], spec.dtype) for spec in specs)
        return sum(len(guard.features(zeros, spec, grid)) for zeros, spec in zip(whole, specs, strict=True))

    def _threshold(self, table: GuardTable, distances: list[float]) -> float:
        """Raises: DataError where there are too few distances for the stated rate."""
        count = len(distances)
        rank = math.ceil((count + 1) * (1 - table.false_alarms))
        if rank > count:
            raise DataError(
                f"{self.project.where}: guard: false_alarms = {table.false_alarms:g} needs"
                f" {math.ceil(1 / table.false_alarms) - 1} samples to set the threshold on, and half of"
                f" {self.data.evaluated_from} has {count}; give more, or allow more false alarms"
            )
        # Rounded up, so that what set it is not caught.
        return float(f"{sorted(distances)[rank - 1] * (1 + 1e-5):.6g}")

    def _judged(
        self, table: GuardTable, familiar: Familiar, threshold: float, fitted_on: int, set_on: int
    ) -> GuardEvidence:
        judged = self.data.judged

        def catch(name: str, samples: Samples) -> GuardCatch:
            found = _caught([familiar.distance(each) for each in self._ready(samples)], threshold)
            low, high = intervals.of_share(found, len(samples))
            return GuardCatch(name, found, len(samples), round(low, 4), round(high, 4))

        if table.unfamiliar:
            kinds = {table.unfamiliar: self.data.opened(table.unfamiliar)}
        else:
            few = judged.take(slice(0, SHIFTED))
            kinds = unfamiliar.made(few, self.project.file.data.seed)
        return GuardEvidence(
            answer=table.answer,
            stated=table.false_alarms,
            fitted_on=fitted_on,
            set_on=set_on,
            familiar=catch("familiar", judged),
            unfamiliar=tuple(catch(name, samples) for name, samples in kinds.items()),
        )

    def _ready(self, samples: Samples) -> list[dict[str, Array]]:
        return [self.data.ready(samples.sample(index)) for index in range(len(samples))]


def fitted(fit: list[dict[str, Array]], specs: tuple[TensorSpec, ...], grid: int) -> Familiar:
    """Mean and whitening of the features of ready inputs."""
    parts = [np.stack([guard.features(each[spec.name], spec, grid) for each in fit]) for spec in specs]
    spreads = np.concatenate([_spread(part) for part in parts])
    rows = np.concatenate(parts, axis=1)
    mean = rows.mean(axis=0)
    covariance = shrunk((rows - mean) / spreads)
    whitening = np.linalg.inv(np.linalg.cholesky(covariance)) / spreads
    # As a device reads it.
    return Familiar(specs, grid, mean.astype(np.float32).astype(np.float64), whitening.astype(np.float32))


def _spread(part: Rows) -> Rows:
    own: Rows = part.std(axis=0)
    least = LEAST_SPREAD * float(own.mean()) or 1e-6 * max(1.0, float(np.abs(part).max()))
    return np.maximum(own, least)


def shrunk(rows: Rows) -> Rows:
    """(F, F) covariance of centred rows (N, F), drawn towards no correlation as far as so few rows need it.

    Source: Ledoit, Wolf (2004), section 3.
    """
    count, size = rows.shape
    plain = rows.T @ rows / count
    level = float(np.trace(plain)) / size
    spread = float(((plain - level * np.eye(size)) ** 2).sum())
    noise = float(((rows**2).sum(axis=1) ** 2).sum() / count**2 - (plain**2).sum() / count)
    weight = min(1.0, max(LEAST_SHRINKAGE, noise / spread if spread > 0 else 1.0))
    covariance: Rows = (1 - weight) * plain + weight * (level or 1.0) * np.eye(size)
    return covariance


def _says_something(arrays: list[Array]) -> bool:
    """Whether its values are measurements, finite ones: of tokens and infinite masks no distance says anything."""
    together = stacked(arrays)
    if not (is_signal(together) or arrays[0].dtype == np.int8):
        return False
    return all(array.dtype.kind in "iu" or bool(np.isfinite(array).all()) for array in arrays)


def _caught(distances: list[float], threshold: float) -> int:
    """Written so that NaN, which compares false, is caught."""
    return sum(not found <= threshold for found in distances)


def told(found: GuardEvidence) -> str:
    """In words.

    >>> told(GuardEvidence("flag", 0.01, 200, 298, GuardCatch("familiar", 0, 298, 0.0, 0.013), ()))
    'guard: catches 0 of 298 familiar inputs (at most 1.3 %; set for 1 %)'
    """
    own = found.familiar
    text = (
        f"guard: catches {own.found} of {own.of} familiar inputs"
        f" (at most {own.high * 100:.2g} %; set for {found.stated * 100:g} %)"
    )
    kinds: Mapping[str, GuardCatch] = {each.name: each for each in found.unfamiliar}
    if kinds:
        text += "; of unfamiliar ones " + ", ".join(
            f"{name} {each.found} of {each.of}" for name, each in kinds.items()
        )
    return text + ("; MORE FALSE ALARMS THAN STATED" if own.low > found.stated else "")
