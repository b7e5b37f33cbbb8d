"""The page of an output folder: what the last build tells, and what earlier builds of the same model left there.

Always true
 1. Of one profile the last build's sheet is shown; of the others the evidence beside their picked bundles.
 2. Evidence about another model or version, or that cannot be read, is left out: it is not this page's to judge.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from converters.keep.files import write_whole
from converters.report import page
from converters.sheet import Sheet, of_evidence
from edgekit import evidence
from edgekit.errors import BundleError

REPORT = "report.html"


def write(folder: Path, sheets: Sequence[Sheet]) -> Path:
    """Draw `report.html` of a build's sheets and of the profiles that it did not build for; the file's path."""
    path = folder / REPORT
    write_whole(path, page.render([*sheets, *others(sheets, left(folder))]).encode())
    return path


def left(folder: Path) -> Iterable[Sheet]:
    """The sheets of the evidence files in a folder, those of alternates aside: they tell the same."""
    for path in sorted(folder.glob("*.evidence.json")):
        try:
            yield of_evidence(evidence.decode(path.read_bytes()).predicate)
        except (BundleError, OSError):
            continue


def others(sheets: Sequence[Sheet], found: Iterable[Sheet]) -> list[Sheet]:
    """Those found of the same model and version for profiles that the sheets do not have."""
    told = {sheet.profile for sheet in sheets}
    model = {(sheet.name, sheet.version) for sheet in sheets}
    return [sheet for sheet in found if sheet.profile not in told and (sheet.name, sheet.version) in model]
