"""`edgekit report`: the page again, from what a build left behind."""

from pathlib import Path

import click
import msgspec

from converters.report import folder, page
from converters.sheet import Sheet, of_evidence
from edgekit import evidence
from edgekit.cli import render
from edgekit.errors import BundleError, UsageError

EPILOG = """\b
Examples:
  edgekit report dist                    # all profiles of an output folder
  edgekit report dist/digits-1.0.0-raspberry-pi-5.evidence.json
  edgekit report result.json --out report.html
"""


class _Result(msgspec.Struct, frozen=True):
    """Of a `result.json`, what the page is drawn from."""

    profiles: tuple[Sheet, ...]


@click.command(epilog=EPILOG)
@click.argument(
    "files",
    metavar="FILE_OR_FOLDER...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True),
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True)
def report(files: tuple[Path, ...], out: Path) -> None:
    """Draw report.html from evidence files, a folder of them, or a build's result.json; nothing is built or measured."""
    sheets: dict[tuple[str, str, str], Sheet] = {}
    for file in files:
        for sheet in _sheets(file):
            sheets.setdefault((sheet.name, sheet.version, sheet.profile), sheet)
    if not sheets:
        raise UsageError(f"{files[0]}: holds no profile")
    if len({key[:2] for key in sheets}) > 1:
        raise UsageError("these files are about several models or versions; draw one page for each")
    render.write_text(out, page.render(list(sheets.values())))
    click.echo(f"report {out}")


def _sheets(file: Path) -> tuple[Sheet, ...]:
    if file.is_dir():
        found = tuple(folder.left(file))
        if not found:
            raise UsageError(f"{file}: there is no evidence file in this folder")
        return found
    data = file.read_bytes()
    try:
        if file.name.endswith(".evidence.json"):
            return (of_evidence(evidence.decode(data).predicate),)
        return msgspec.json.decode(data, type=_Result).profiles
    except (BundleError, msgspec.DecodeError) as error:
        raise UsageError(f"{file}: neither evidence nor a result.json of edgekit build ({error})") from error
