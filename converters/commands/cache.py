"""`edgekit cache`: what builds keep on this machine."""

import shutil
from pathlib import Path

import click

from converters.keep.artifacts import default_root
from converters.keep.builds import FOLDER, SEARCHES
from edgekit.cli import render

_WHERE = click.option("--cache", "root", type=click.Path(path_type=Path), help="The user's cache by default.")


@click.group()
def cache() -> None:
    """Converted artifacts and whole builds that later builds use again."""


@cache.command()
@_WHERE
@click.option("--json", "as_json", is_flag=True)
def status(root: Path | None, *, as_json: bool) -> None:
    """Where it is, how many entries it holds, and how large they are."""
    root = root or default_root()
    artifacts = _entries(root)
    builds, searches = _entries(root / FOLDER), _entries(root / SEARCHES)
    found = {
        "folder": str(root),
        "artifacts": len(artifacts),
        "artifact_bytes": sum(map(_size, artifacts)),
        "builds": len(builds),
        "build_bytes": sum(map(_size, builds)),
        "searches": len(searches),
        "search_bytes": sum(map(_size, searches)),
    }
    if as_json:
        render.print_json(found)
        return
    render.pairs(
        str(root),
        [
            ("converted artifacts", f"{len(artifacts)}, {render.size(sum(map(_size, artifacts)))}"),
            ("whole builds", f"{len(builds)}, {render.size(sum(map(_size, builds)))}"),
            ("searches", f"{len(searches)}, {render.size(sum(map(_size, searches)))}"),
        ],
    )


@cache.command()
@_WHERE
def clear(root: Path | None) -> None:
    """Remove every entry; the next build converts anew."""
    root = root or default_root()
    entries = [*_entries(root / FOLDER), *_entries(root / SEARCHES), *_entries(root)]
    freed = sum(map(_size, entries))
    for entry in entries:
        shutil.rmtree(entry)
    click.echo(f"removed {len(entries)} entries, {render.size(freed)}")


def _entries(root: Path) -> list[Path]:
    """Folders with an entry's name: a sha256, so that nothing else that lies there is ever touched."""
    if not root.is_dir():
        return []
    return sorted(
        path
        for path in root.iterdir()
        if path.is_dir() and len(path.name) == 64 and set(path.name) <= set("0123456789abcdef")
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
