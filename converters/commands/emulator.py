"""`edgekit emulator`: set up, show and remove what ARM bundles are emulated with."""

import click
from packaging.requirements import Requirement

from converters.emulation import setup as installation
from converters.emulation.machine import Machine
from converters.recipes import facts
from edgekit.cli import render

json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")


@click.group()
def emulator() -> None:
    """Set up, show and remove the ARM emulator that `edgekit verify --emulate` and builds use."""


@emulator.command(epilog="Example:  edgekit emulator setup && edgekit verify --emulate digits.edgekit")
@json_option
def setup(*, as_json: bool) -> None:
    """Fetch qemu's user mode, an arm64 Python and arm64 wheels, about 120 MB, into the user's cache.

    Uses the machine's own apt and pip sources, needs no root and installs nothing into the system.
    """
    with render.progress() as progress:
        task = progress.add_task("starting", total=None)

        def tell(message: str) -> None:
            progress.update(task, description=message)
            progress.console.print(message, style="dim", highlight=False, markup=False, soft_wrap=True)

        machine = installation.setup(tell)
    _show(machine, as_json=as_json)


@emulator.command()
@json_option
def status(*, as_json: bool) -> None:
    """What is set up here; exit code 0 either way."""
    _show(installation.installed(), as_json=as_json)


@emulator.command()
@json_option
def remove(*, as_json: bool) -> None:
    """Delete it from the user's cache."""
    was_there = installation.remove()
    if as_json:
        render.print_json({"removed": was_there})
    else:
        click.echo(f"removed {installation.home()}" if was_there else "there was none")


def _show(machine: Machine | None, *, as_json: bool) -> None:
    if machine is None:
        if as_json:
            render.print_json({"installed": False})
        else:
            click.echo("no ARM emulator is set up; run: edgekit emulator setup")
        return
    meta = machine.meta
    if as_json:
        told = {"installed": True, "folder": str(machine.folder), "size_bytes": machine.size_bytes()}
        render.print_json({**told, "qemu": str(machine.qemu), "qemu_version": meta.qemu_version,
                           "python": meta.python, "packages": meta.packages, "cpus": machine.cpus()})  # fmt: skip
        return
    wheels = [Requirement(known.emulated).name for known in facts.own() if known.emulated]
    render.pairs(
        "ARM emulator",
        [
            ("folder", f"{machine.folder} ({render.size(machine.size_bytes())})"),
            ("qemu", f"{meta.qemu_version} ({machine.qemu})"),
            ("Python", meta.python),
            *((name, meta.packages[name]) for name in (*wheels, "numpy") if name in meta.packages),
            ("CPUs", ", ".join(machine.cpus())),
        ],
    )
