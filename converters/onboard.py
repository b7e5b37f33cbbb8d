"""After a build: boards of a fleet measure what it kept for silicon that is not here, and the pick is theirs.

Who measures is passed in (`MeasureOn`): converters know no fleet.

Always true
 1. Nothing is converted or judged again, and no bundle changes: which of them stands as the pick, and what evidence, page
    and result say of latency and memory, is all that does.
 2. A board that cannot measure leaves everything as it is, and that is told.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from converters.keep.files import write_whole
from converters.outcome import Options, Outcome
from converters.report import folder as folder_report
from converters.sheet import Sheet, of_evidence
from edgekit import evidence, onboard
from edgekit.errors import EdgeKitError
from edgekit.evidence import CandidateEvidence
from edgekit.onboard import Boards, Choice
from edgekit.plain import plain

# Bundle files → what each board measured of them. Raises: EdgeKitError with what is wrong, and what to do.
MeasureOn = Callable[[Sequence[Path]], Boards]


def settled(
    outcome: Outcome, options: Options, measure_on: MeasureOn, tell: Callable[[str], None]
) -> Outcome:
    """The outcome with what boards say of each profile that got a bundle."""
    sheets, document = list(outcome.sheets), dict(outcome.document)
    for number, sheet in enumerate(sheets):
        rows = [row for row in document["bundles"] if row["profile"] == sheet.profile]
        if not rows:
            continue
        try:
            tell(f"{sheet.profile}: {len(rows)} bundles go to the board to be measured")
            boards = measure_on([Path(row["path"]) for row in rows])
            settled_ = _settle(sheet, rows, boards, options.out)
        except EdgeKitError as error:
            told = f"not measured on a board: {error}"
            tell(f"{sheet.profile}: {told}")
            sheets[number] = replace(sheet, notes=(*sheet.notes, told))
            continue
        sheets[number], others = settled_, [row for row in document["bundles"] if row not in rows]
        document["bundles"] = [*others, *_rows(settled_, rows, options.out)]
        document["candidates"] = [_told(row, settled_) for row in document["candidates"]]
    document["profiles"] = msgspec.to_builtins(tuple(sheets), enc_hook=plain)
    report = folder_report.write(options.out, sheets)
    return Outcome(document, tuple(sheets), outcome.missed, report, outcome.cut)


def _settle(sheet: Sheet, rows: Sequence[Mapping[str, Any]], boards: Boards, out: Path) -> Sheet:
    """Choose, and write it down. Raises: BundleError for evidence that cannot be read."""
    recipes = {_digest(row): str(row["recipe"]) for row in rows}
    present = next(_digest(row) for row in rows if not row["alternate"])
    choice = onboard.choose(boards, list(recipes), present, sheet.contract)
    if not choice.picked:
        choice = replace(choice, picked=present, reason=f"no bundle may be picked: {choice.reason}")
    statements = {}
    for row in rows:
        digest, path = _digest(row), Path(row["path"])
        statement = evidence.decode(evidence.beside(path).read_bytes(), sha256=digest)
        predicate = onboard.recorded(statement.predicate, boards, recipes, digest, choice)
        statements[digest] = replace(statement, predicate=predicate)
        write_whole(evidence.beside(path), evidence.encode(statements[digest]))
    if choice.picked != present:
        _swap(rows, choice, out)
    return of_evidence(statements[choice.picked].predicate)


def _swap(rows: Sequence[Mapping[str, Any]], choice: Choice, out: Path) -> None:
    """The pick stands in the output folder itself, each alternate in a folder of its own."""
    moves = []
    for row in rows:
        path = Path(row["path"])
        target = _place(out, row, choice.picked) / path.name
        if target != path:
            moves += [(evidence.beside(path), evidence.beside(target)), (path, target)]
    staged = [(source, source.with_name(f".{source.name}.moving"), target) for source, target in moves]
    for source, middle, _target in staged:
        source.replace(middle)
    for _source, middle, target in staged:
        target.parent.mkdir(parents=True, exist_ok=True)
        middle.replace(target)


def _place(out: Path, row: Mapping[str, Any], picked: str) -> Path:
    return out if _digest(row) == picked else out / "alternates" / str(row["recipe"]).replace("/", "-")


def _rows(sheet: Sheet, rows: Sequence[Mapping[str, Any]], out: Path) -> list[dict[str, Any]]:
    """`bundles[]`, the pick first."""
    picked = next(_digest(row) for row in rows if row["recipe"] == sheet.picked)
    made = []
    for row in rows:
        is_alternate = _digest(row) != picked
        path = _place(out, row, picked) / Path(row["path"]).name
        where = {"path": str(path), "alternate": is_alternate}
        made.append({**_told(row, sheet), **where, "budgets": dict(sheet.budgets)})
    return sorted(made, key=lambda row: bool(row["alternate"]))


def _told(row: Mapping[str, Any], sheet: Sheet) -> dict[str, Any]:
    """A row of the result with what the board measured of its recipe, if it did."""
    item = next((one for one in sheet.candidates if one.recipe == row["recipe"]), None)
    if row["profile"] != sheet.profile or item is None or not _is_of_board(item):
        return dict(row)
    p50, p95 = item.latency_p50_ms, item.latency_p95_ms
    assert p50 is not None
    assert p95 is not None
    latency = {"p50": p50.value, "p95": p95.value, "how": p50.how, "on": msgspec.to_builtins(p50.on)}
    status = {"status": item.status} if "status" in row else {}
    return {**row, "latency_ms": latency, "reason": item.reason, **status}


def _is_of_board(item: CandidateEvidence) -> bool:
    return item.latency_p50_ms is not None and bool(item.latency_p50_ms.on.device)


def _digest(row: Mapping[str, Any]) -> str:
    return str(row["digest"]).removeprefix("sha256:")
