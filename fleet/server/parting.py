"""Members of a rollout whose devices have changed: who leaves it, and who goes on as what it is now.

Always true
 1. What is decided is `fleet.rules.placing`'s; here it is carried out in the transaction of the rollout's step.
 2. Nobody who leaves stays on what the rollout was trying: an order goes out in the same transaction.
"""

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection

from fleet.rules import placing as rules
from fleet.rules import selectors
from fleet.rules.members import Member, Part
from fleet.rules.placing import Standing
from fleet.rules.rollout import Left, Rollout
from fleet.server import changes, fitting
from fleet.server.clock import Now
from fleet.server.placing import Bundles
from fleet.server.store import assignments, devices, orders, releases, rollouts
from fleet.server.store.devices import DeviceRow
from fleet.server.store.orders import DesiredRow, Issuer
from fleet.server.store.releases import BundleRow


def part(
    connection: Connection,
    issuer: Issuer,
    rollout: Rollout,
    changed: Sequence[str],
    *,
    now: Now,
    is_frozen: bool,
) -> Rollout:
    """The rollout after members whose devices have changed left it or go on as what they are now. Who was moved and
    leaves is ordered what is assigned to where it is now, else what it ran before. A freeze keeps everybody in.
    """
    spec, selector = rollout.spec, selectors.parse(rollout.spec.selector)
    bundles = Bundles(connection)
    leaving: dict[str, DeviceRow] = {}
    exchanged: dict[str, Member] = {}
    for row in devices.some(connection, changed):
        member = rollout.members[row.id]
        has_deployment = set(spec.deployments) <= set(devices.deployments_of(row))
        standing = rules.standing(
            member,
            rollout.status,
            is_selected=selector.matches(devices.labels_of(row)),
            has_deployment=has_deployment,
            chain=fitting.chain_of(row.profile),
        )
        if standing is Standing.EXCHANGED:
            after = _exchanged(connection, bundles, rollout, member, row)
            standing = Standing.LEAVES if after is None else standing
            exchanged |= {row.id: after} if after is not None else {}
        if standing is Standing.LEAVES and not (is_frozen and has_deployment):
            leaving[row.id] = row
    if exchanged:
        after_all = msgspec.structs.replace(rollout, members=rollout.members | exchanged)
        rollouts.save(connection, after_all, rollout, now.wall)
        rollout = after_all
    if not leaving:
        return rollout
    _send_off(bundles, issuer, rollout, leaving, now)
    return changes.apply(connection, issuer, rollout, Left(tuple(leaving)), now=now)


def _exchanged(
    connection: Connection, bundles: Bundles, rollout: Rollout, member: Member, row: DeviceRow
) -> Member | None:
    targets = [bundles.fit(part.name, part.version, row.profile) for part in rollout.spec.parts]
    found = [target for target in targets if target is not None]
    if len(found) < len(targets):
        return None
    before = [refitted(connection, bundles, part.previous, row.profile) for part in member.parts]
    parts = [
        Part(target.sha256, was.sha256 if was is not None else None, part.previous_title)
        for target, was, part in zip(found, before, member.parts, strict=True)
    ]
    return rules.exchanged(member, found[0].profile, parts)


def refitted(connection: Connection, bundles: Bundles, sha256: str | None, profile: str) -> BundleRow | None:
    """The bundle of the same release for other hardware; None if there is none that may be ordered."""
    if sha256 is None:
        return None
    was = releases.bundle(connection, sha256)
    return bundles.fit(was.name, was.version, profile)


def _send_off(
    bundles: Bundles, issuer: Issuer, rollout: Rollout, leaving: dict[str, DeviceRow], now: Now
) -> None:
    """Orders for those who leave and were moved: they must not stay on what the rollout was trying on others."""
    connection, spec = bundles.connection, rollout.spec
    all_of_them = assignments.newest_first(connection)
    present = orders.desired_of(connection, devices=sorted(leaving))
    moves: dict[str, list[str | None]] = {}
    for device, row in leaving.items():
        member, has = rollout.members[device], devices.deployments_of(row)
        wanted: dict[str, str | None] = {}
        for deployment, part in zip(spec.deployments, member.parts, strict=True):
            if not member.order_counter or deployment not in has:
                continue
            bundle, _ = bundles.assigned(all_of_them, row, deployment)
            if bundle is None:
                bundle = refitted(connection, bundles, part.previous, row.profile)
            if bundle is not None or part.previous is None:
                wanted[deployment] = bundle.sha256 if bundle is not None else None
        if wanted:
            moves[device] = [
                wanted[one] if one in wanted else _sha256(present.get((device, one)))
                for one in spec.deployments
            ]
    if moves:
        because = f"left rollout {rollout.label}"
        orders.move(connection, issuer, spec.deployments, moves, because=because, now=now.wall)


def _sha256(row: DesiredRow | None) -> str | None:
    return row.sha256 if row is not None else None


def refit(connection: Connection, device: str, profile: str) -> None:
    """A device that begins anew on other hardware is ordered the same releases, for that; or nothing, where there is
    no such bundle. An order must follow.
    """
    bundles = Bundles(connection)
    chain = fitting.chain_of(profile)
    for (_, deployment), row in orders.desired_of(connection, device).items():
        if row.profile in chain:
            continue
        found = bundles.fit(row.name, row.version, profile)
        sha256 = found.sha256 if found is not None else None
        orders.set_desired(connection, device, deployment, sha256, because=row.because, now=row.set_at)
