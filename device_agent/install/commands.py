"""`edgekit agent install` and `uninstall`: flags in, steps done and told."""

import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import click
import msgspec

from device_agent import identity
from device_agent.install import carry, files, plan
from device_agent.install.carry import Done
from device_agent.install.files import Wanted
from device_agent.install.plan import Keep, Link, Remove, Run, Step, Write
from edgekit.errors import NotPossibleError, UsageError

# Where a service with ProtectHome sees nothing.
_HOMES = ("/home", "/root", "/run/user")

_ROOT = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A tree that becomes a board's file system, instead of this machine.",
)
_DRY = click.option(
    "--dry-run", is_flag=True, help="Print all that would be done and written, and do nothing."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


class Outcome(msgspec.Struct, frozen=True):
    """`exposure` is systemd's figure for the unit, 0 (best) to 10; `files` is what a dry run would write, by path."""

    dry_run: bool
    steps: tuple[Done, ...]
    exposure: float | None = None
    objections: tuple[str, ...] = ()
    files: dict[str, str] = {}


@click.command(
    epilog="Examples:  edgekit agent install --dry-run    sudo /opt/edgekit/bin/edgekit agent install"
    " --enrolment board-7.json --start    edgekit agent install --root ./image --start"
)
@click.option(
    "--enrolment",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The file that 'edgekit fleet enroll' made; it is copied to where the service reads it.",
)
@click.option("--start", "starts", is_flag=True, help="Start the service now, and at each boot.")
@click.option(
    "--program",
    type=click.Path(path_type=PurePosixPath),
    help="The edgekit that the service starts; by default this one, in a tree /opt/edgekit/bin/edgekit.",
)
@click.option(
    "--journal-size",
    default=files.JOURNAL_SIZE,
    show_default=True,
    help="Most that the machine's journal may take of the card; 0 leaves the journal as it is.",
)
@_ROOT
@_DRY
@_JSON
def install(
    *,
    enrolment: Path | None,
    starts: bool,
    program: PurePosixPath | None,
    journal_size: str,
    root: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make the agent a service of this board: unit, users, folders, journal. Again, it brings them up to date."""
    if not re.fullmatch(r"\d+[KMGT]?", journal_size):
        raise UsageError(f"--journal-size {journal_size}: give a size as systemd reads it, e.g. 128M")
    if enrolment is not None:
        identity.read_enrolment(enrolment)
    wanted = Wanted(
        program or (files.PROGRAM if root else PurePosixPath(sys.prefix) / "bin" / "edgekit"),
        "" if journal_size == "0" else journal_size,
        enrolment.read_bytes() if enrolment is not None else None,
    )
    objections = _objections(wanted, root)
    if objections and not dry_run:
        raise NotPossibleError("; ".join(objections))
    place = (root or Path("/")).resolve()
    seen = carry.look(place, plan.looked_at(wanted))
    steps = plan.install(wanted, seen, root=str(place) if root else "", starts=starts)
    score = carry.exposure(files.unit(wanted.program))
    if dry_run:
        shown = {str(path): text for path, text in files.texts(wanted).items()}
        _tell(Outcome(True, _foretold(steps), score, objections, shown), as_json=as_json)
        return
    done = _carried_out(place, steps, as_json=as_json)
    _tell(Outcome(False, done, score), as_json=as_json)
    if not as_json and not starts and root is None:
        click.echo(f"next: systemctl enable --now {files.SERVICE}")


@click.command(
    epilog="Examples:  sudo edgekit agent uninstall    sudo edgekit agent uninstall --purge   (the device's identity, too)"
)
@click.option("--purge", is_flag=True, help="Remove state, settings, drop-ins and users as well.")
@_ROOT
@_DRY
@_JSON
def uninstall(*, purge: bool, root: Path | None, dry_run: bool, as_json: bool) -> None:
    """End the service and remove what 'install' wrote; the state stays, so that a new install goes on with it."""
    if not dry_run and (objections := _rights(root)):
        raise NotPossibleError("; ".join(objections))
    place = (root or Path("/")).resolve()
    seen = carry.look(place, plan.looked_at())
    steps = plan.uninstall(seen, root=str(place) if root else "", purge=purge)
    if dry_run:
        _tell(Outcome(True, _foretold(steps)), as_json=as_json)
        return
    done = _carried_out(place, steps, as_json=as_json)
    _tell(Outcome(False, done), as_json=as_json)
    if not as_json and not purge:
        click.echo(f"{files.STATE} and {files.SETTINGS} stay; --purge removes them")


def _objections(wanted: Wanted, root: Path | None) -> tuple[str, ...]:
    """Why this would not become a working service, each with what to do."""
    found = list(_rights(root))
    program = wanted.program
    if not program.is_absolute():
        found.append(f"--program {program}: give a whole path")
    elif any(program.is_relative_to(home) for home in _HOMES):
        found.append(
            f"{program} lies where the service sees nothing; install EdgeKit into /opt/edgekit, or give --program"
        )
    elif root is None and not os.access(program, os.X_OK):
        found.append(f"{program} is no program here; give --program")
    return tuple(found)


def _rights(root: Path | None) -> tuple[str, ...]:
    if root is not None:
        return ()
    found = []
    if os.geteuid() != 0:
        found.append("run this as root, or give --root")
    if not Path("/run/systemd/system").is_dir():
        found.append("systemd does not run this machine; give --root, or see docs/board.md for containers")
    return tuple(found)


def _carried_out(root: Path, steps: Sequence[Step], *, as_json: bool) -> tuple[Done, ...]:
    done = []
    for one in carry.carry_out(root, steps):
        done.append(one)
        if not as_json:
            click.echo(_line(one))
    return tuple(done)


def _foretold(steps: Iterable[Step]) -> tuple[Done, ...]:
    def told(step: Step) -> Done:
        match step:
            case Write():
                return Done(f"would be {step.was}", step.path)
            case Keep():
                return Done("unchanged", step.path)
            case Remove():
                return Done("would be removed", step.path)
            case Link():
                return Done("would be linked", step.path)
            case Run():
                return Done("would run", " ".join(step.words))

    return tuple(told(step) for step in steps)


def _line(done: Done) -> str:
    return f"{done.what:<16} {done.subject}{f'  ({done.detail})' if done.detail else ''}"


def _tell(outcome: Outcome, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(outcome))
        return
    if outcome.dry_run:
        for path, text in outcome.files.items():
            click.echo(f"--- {path}\n{text}")
        for done in outcome.steps:
            click.echo(_line(done))
    for objection in outcome.objections:
        click.echo(f"would be refused: {objection}")
    if outcome.exposure is not None:
        click.echo(f"exposure {outcome.exposure:.1f} of 10 as systemd-analyze counts it (0 is best)")
