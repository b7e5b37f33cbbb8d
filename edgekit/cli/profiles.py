"""`edgekit profiles`: list, show and detect hardware profiles."""

from pathlib import Path

import click
import msgspec

from edgekit import profile
from edgekit.cli import render
from edgekit.profile import Profile


@click.group()
def profiles() -> None:
    """List, show and detect hardware profiles: what a build is made for."""


@profiles.command("list")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def list_command(*, as_json: bool) -> None:
    """The profiles that come with EdgeKit."""
    loaded = [profile.load(name) for name in profile.shipped()]
    if as_json:
        render.print_json(loaded)
        return
    render.table(
        "Hardware profiles",
        ["profile", "title", "arch", "cores", "memory", "engines", "precisions"],
        [
            (
                entry.name,
                entry.title,
                entry.arch,
                str(entry.cores),
                f"{entry.memory_mb:.0f} MB",
                ", ".join(entry.engines),
                ", ".join(entry.precisions),
            )
            for entry in loaded
        ],
        numeric=["cores", "memory"],
    )


@profiles.command(epilog="Example:  edgekit profiles show raspberry-pi-5")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def show(name: str, *, as_json: bool) -> None:
    """One profile (a name, or a .toml file of your own) with everything it inherits."""
    loaded = profile.load(name)
    if as_json:
        render.print_json(loaded)
        return
    render.pairs(f"{loaded.name}: {loaded.title}", _described(loaded))


@profiles.command(
    epilog="Example:  edgekit profiles detect --out my-board.toml && edgekit build --target my-board.toml"
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write it there instead of printing it."
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def detect(out: Path | None, *, as_json: bool) -> None:
    """Write the profile of the machine this runs on."""
    from edgekit import detect as detection

    text = detection.detect()
    if out is not None:
        render.write_text(out, text)
        render.note(
            f"wrote {out}; check the figures marked as measured, then use it wherever a profile's name goes"
        )
    if as_json:
        render.print_json(profile.parse(text, "detected.toml"))
    elif out is None:
        click.echo(text, nl=False)


def _described(loaded: Profile) -> list[tuple[str, str]]:
    values = msgspec.to_builtins(loaded)
    shown = []
    for key, value in values.items():
        if isinstance(value, dict):
            text = ", ".join(f"{name} {entry}" for name, entry in value.items() if entry not in (None, ""))
        elif isinstance(value, list | tuple):
            text = " → ".join(value) if key == "chain" else ", ".join(map(str, value))
        else:
            text = "" if value is None else str(value)
        shown.append((key, text or "-"))
    return shown
