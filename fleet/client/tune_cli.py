"""`edgekit fleet tune`: real boards measure a release's bundles for a profile, and the fastest that passes is picked."""

from collections.abc import Mapping

import click
import msgspec
from msgspec.structs import replace

from edgekit import evidence
from edgekit.errors import ConflictError, NotFoundError, UsageError
from edgekit.wire.commands import Measured
from fleet import api
from fleet.client import command_views, onboard, render
from fleet.client.complete import completes
from fleet.client.options import connected, examples, with_fleet
from fleet.client.rest import Client
from fleet.client.sheet import Column, Sheet

MOST_BOARDS = 8


class Tuned(msgspec.Struct, frozen=True):
    """`picked` and `before` are digests; `ratios` each bundle's time over that of the one picked before, [low, median, high]
    at 95 %, None where it was not timed on all boards that measured; `left_out` has why the others did not.
    """

    release: str
    profile: str
    picked: str
    before: str
    reason: str
    recipes: dict[str, str]
    ratios: dict[str, tuple[float, float, float] | None]
    boards: dict[str, Measured]
    left_out: dict[str, str]
    is_recorded: bool


@click.command(
    epilog=examples(
        "edgekit fleet tune digits@1.0.0 --profile raspberry-pi-5 --on 'site=lab'",
        "edgekit fleet tune digits@1.0.0 --profile raspberry-pi-5 --on 'device=lab-7' --dry-run --json",
    )
)
@click.argument("release", metavar="NAME@VERSION", shell_complete=completes("release"))
@click.option("--profile", required=True, help="Whose bundles to compare.")
@click.option(
    "--on", "where", required=True, metavar="FILTER", help="The boards: 'site=lab'; those that are online."
)
@click.option(
    "--budget",
    default=onboard.BUDGET_S,
    show_default=True,
    type=click.FloatRange(0.5, 600),
    help="Seconds of timing on each board.",
)
@click.option("--dry-run", is_flag=True, help="Only measure and tell.")
@with_fleet
def tune(
    *, release: str, profile: str, where: str, budget: float, dry_run: bool, place: str | None, as_json: bool
) -> None:
    """Measure the picked bundle of a release and its alternates on real boards, and pick the fastest that passes.

    The evidence of each is written anew with what the boards measured. The pick changes only where another is faster
    beyond doubt, and only until a device is ordered to run the release: after that a rollout changes what runs.
    A board that does not measure is left out and named; with none left it is an error.
    """
    with connected(place) as client:
        done = _tuned(client, release, profile, where, budget, is_dry=dry_run)
    if as_json:
        render.show_json(done)
        return
    for board, measured in done.boards.items():
        render.say(f"{board} ({measured.cpu}):")
        render.show(command_views.measured(measured))
    for board, why in done.left_out.items():
        render.say(f"{board} is left out: {why}")
    render.show(_ratios(done))
    what = "stays" if done.picked == done.before else "is the pick now"
    if not done.is_recorded:
        what = "would stay" if done.picked == done.before else "would be the pick"
    render.say(
        f"{release} for {profile}: {done.recipes[done.picked]} ({done.picked[:12]}) {what}: {done.reason}"
    )


def _tuned(client: Client, title: str, profile: str, where: str, budget_s: float, *, is_dry: bool) -> Tuned:
    # numpy is needed for the intervals only.
    from edgekit import onboard as rules

    own, others = _bundles(client, title, profile)
    statements = {one.sha256: _statement(client, one) for one in (own, *others)}
    recipes = {digest: one.predicate.recipe for digest, one in statements.items()}
    boards = [one.device for one in client.find(where) if one.online and one.enrolled]
    if not boards:
        raise UsageError(f"--on {where!r} finds no board that is online")
    asked = onboard.on_boards(client, boards[:MOST_BOARDS], list(recipes), budget_s)
    measured = asked.measured
    contract = statements[own.sha256].predicate.contract
    choice = rules.choose(measured, list(recipes), own.sha256, contract)
    if not choice.picked:
        raise ConflictError(f"{title} for {profile}: no bundle may be picked: {choice.reason}")
    if not is_dry:
        told = {
            digest: evidence.encode(
                replace(one, predicate=rules.recorded(one.predicate, measured, recipes, digest, choice))
            ).decode()
            for digest, one in statements.items()
        }
        client.pick(own.name, own.version, profile, api.NewPick(choice.picked, told))
    ratios = {
        one.sha256: None if one.ratio is None else (one.ratio.low, one.ratio.median, one.ratio.high)
        for one in choice.standings
    }
    return Tuned(
        title, profile, choice.picked, own.sha256, choice.reason, recipes, ratios, measured, asked.left_out,
        is_recorded=not is_dry,
    )  # fmt: skip


def _bundles(client: Client, title: str, profile: str) -> tuple[api.BundleView, list[api.BundleView]]:
    """The picked bundle, and its alternates. Raises: NotFoundError; UsageError where there is nothing to compare."""
    found = next((one for one in client.releases() if f"{one.name}@{one.version}" == title), None)
    own = next((one for one in found.bundles if one.profile == profile), None) if found else None
    if found is None or own is None:
        raise NotFoundError(
            f"{title} for {profile} is not published here; 'edgekit fleet releases' lists what is"
        )
    others = [one for one in found.alternates if one.profile == profile]
    if not others:
        raise UsageError(
            f"{title} for {profile} has no alternates; publish the build's whole output folder, which holds them"
        )
    return own, others


def _statement(client: Client, one: api.BundleView) -> evidence.Statement:
    """Raises: UsageError for a bundle without evidence, in which what boards measure could be written."""
    if not one.has_evidence:
        raise UsageError(
            f"{one.sha256[:12]}… was published without evidence; publish it with the file beside it"
        )
    return evidence.decode(client.statement(one.sha256), sha256=one.sha256)


def _ratios(done: Tuned) -> Sheet:
    made = Sheet([*map(Column, ("bundle", "recipe")), Column("time over the present pick's", is_right=True)])
    values: Mapping[str, tuple[float, float, float] | None] = done.ratios
    for digest, ratio in values.items():
        told = f"{ratio[1]:.3f} ({ratio[0]:.3f} to {ratio[2]:.3f})" if ratio else "not compared"
        made.add(digest[:12], done.recipes[digest], told)
    return made


COMMANDS = (tune,)
