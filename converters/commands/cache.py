"""`edgekit cache`: what builds keep on this machine."""

import shutil
from pathlib import Path

import click

from converters.keep import room
from converters.keep.artifacts import default_root
from edgekit.cli import render

_WHERE = click.option("--cache", "root", type=click.Path(path_type=Path), help="The user's cache by default.")


@click.group()
def cache() -> None:
    """Converted artifacts and whole builds that later builds use again.

    Holds up to 10 GB, or what $EDGEKIT_CACHE_LIMIT says (500MB, 20GB); what was used longest ago goes first.
    """


@cache.command()
@_WHERE
@click.option("--json", "as_json", is_flag=True)
def status(root: Path | None, *, as_json: bool) -> None:
    """Where it is, how many entries it holds, how large they are, and how large they may become."""
    root = root or default_root()
    kinds = {name: room.entries(folder) for name, folder in room.folders(root).items()}
    sizes = {name: sum(item.size_bytes for item in kept) for name, kept in kinds.items()}
    limit = room.limit_bytes()
    if as_json:
        found: dict[str, object] = {"folder": str(root)}
        for name, kept in kinds.items():
            found |= {name: len(kept), f"{name[:-1]}_bytes": sizes[name]}
        render.print_json(
            {**found, "search_bytes": sizes["searches"], "bytes": sum(sizes.values()), "limit_bytes": limit}
        )
        return
    words = {"artifacts": "converted artifacts", "builds": "whole builds", "searches": "searches"}
    render.pairs(
        str(root),
        [
            *((words[name], f"{len(kept)}, {render.size(sizes[name])}") for name, kept in kinds.items()),
            ("together", f"{render.size(sum(sizes.values()))} of {render.size(limit)} (${room.VARIABLE})"),
        ],
    )


@cache.command()
@_WHERE
def clear(root: Path | None) -> None:
    """Remove every entry; the next build converts anew."""
    root = root or default_root()
    kept = room.everything(root)
    with room.lock(root, alone=True):  # waits for builds that are reading
        for item in kept:
            shutil.rmtree(item.path, ignore_errors=True)
    click.echo(f"removed {len(kept)} entries, {render.size(sum(item.size_bytes for item in kept))}")


@cache.command()
@_WHERE
@click.option("--to", "size", help="E.g. 2GB; what the limit says by default.")
def trim(root: Path | None, size: str | None) -> None:
    """Remove the entries used longest ago until the rest fit."""
    root = root or default_root()
    limit = room.parse_size(size, "--to") if size else room.limit_bytes()
    click.echo(f"removed {room.make_room(root, limit)} entries")
