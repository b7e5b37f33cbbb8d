"""A candidate's figures: on the search half, which may be looked at again and again, and once on the judged half.

Always true
 1. Nothing that the judged half says decides what is made.
 2. A candidate whose outputs cannot be compared with the source's is out, and the build goes on.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from converters.judge.accuracy import Accuracy, Judgement, Place
from converters.judge.metrics import MetricError
from converters.judge.score import score
from converters.measure.host import Host
from converters.rounds.candidates import BucketScore, Candidate
from converters.work.findings import told
from converters.work.workbench import Workbench
from edgekit import interrupt
from edgekit.errors import DataError
from edgekit.manifest import Contract
from edgekit.tensors import Array


def searched(bench: Workbench, contract: Contract, item: Candidate, host: Host) -> Candidate:
    """Scored on the search half; an engine that fails there, or outputs that cannot be compared, cost the candidate."""
    assert item.artifact is not None
    threads = host.threads(item.plan)
    try:
        found = bench.search(item.artifact, item.plan, threads)
    except Exception as error:  # noqa: BLE001  # an engine's bug costs its candidate, not the build; the reason is shown
        interrupt.check()
        return replace(item, failure=told(error))
    try:
        score = bench.standard.search_score(item.plan, found, limit_of(contract), contract.max_drop_per_slice)
        return replace(item, search=score)
    except DataError as error:
        return replace(item, failure=str(error))


def is_same_function(item: Candidate) -> bool:
    """Whether a candidate is known to compute what its source does: its own file, or float32 that keeps every output."""
    recipe = item.plan.recipe
    return recipe.scheme == "as-is" or (
        recipe.precision == "fp32" and all(output.holds for output in item.outputs)
    )


def limit_of(contract: Contract) -> float:
    """How much accuracy may be lost. A build's contracts always say: by default where the user did not."""
    assert contract.max_accuracy_drop is not None
    return contract.max_accuracy_drop


def with_outputs(bench: Workbench, contract: Contract, item: Candidate) -> Candidate:
    """With what it keeps of every output on the judged half; outputs that cannot be compared cost it."""
    assert item.evaluated is not None
    reference = bench.standard.few_reference if item.is_glimpsed else bench.standard.reference
    try:
        found = bench.standard.output_scores(item.plan, item.evaluated, reference, limit_of(contract))
    except DataError as error:
        return replace(item, failure=str(error))
    return replace(item, outputs=found)


def scored(bench: Workbench, contract: Contract, item: Candidate, place: Place) -> Candidate:
    """Judged on the half that nothing was chosen by (or a little of it), in its place among those that may err there."""
    assert item.evaluated is not None
    found = score(
        bench.standard.few_yardstick if item.is_glimpsed else bench.standard.yardstick,
        item.evaluated.digest,
        item.evaluated.shifted,
        limit_of(contract),
        drawn=item.evaluated.drawn,
        outputs=item.outputs,
        place=place,
        is_same_function=is_same_function(item),
        slice_limit=contract.max_drop_per_slice,
    )
    notes = item.notes
    if found.shift is not None and found.shift.verdict == "red":
        notes = (*notes, found.shift.reason)
    return replace(
        item,
        accuracy=found.accuracy,
        judgement=_shown(found.judgement, found.accuracy, limit_of(contract))
        if item.is_glimpsed
        else found.judgement,
        shift=found.shift,
        notes=notes,
        slices=found.slices,
        buckets=() if item.is_glimpsed else _bucket_scores(bench, item.evaluated.digest),
    )


def _shown(judgement: Judgement, figures: Accuracy, limit: float) -> Judgement:
    """Of few samples: a miss only where they show one."""
    is_shown = bool(figures.trouble) or figures.low > limit
    return (
        judgement if judgement.verdict != "missed" or is_shown else Judgement("undecided", judgement.reason)
    )


def _bucket_scores(bench: Workbench, digest: Mapping[str, Array]) -> tuple[BucketScore, ...]:
    """Those of which the metric gives a number."""
    found = []
    for size, share in bench.data.shares.items():
        own = bench.data.judged_buckets == size
        source, ours = (
            {name: array[own] for name, array in of.items()}
            for of in (bench.standard.reference.digest, digest)
        )
        labels = bench.standard.labels[own]
        try:
            figures = bench.metric.of_digest(source, labels), bench.metric.of_digest(ours, labels)
        except MetricError:
            # Of all samples it gave a number, or is a miss already.
            continue
        if all(map(math.isfinite, figures)):
            found.append(BucketScore(size, share, int(own.sum()), *figures))
    return tuple(found)
