"""`edgekit agent status`: the device as it last described itself, and whether an agent is running at all."""

from datetime import UTC, datetime

import msgspec

from device_agent.folder import StateFolder
from device_agent.supervisor import AgentStatus
from edgekit.errors import UsageError
from edgekit.wire.messages import DeploymentReport, Reported


class StatusView(msgspec.Struct, frozen=True):
    """`age_s` is how long ago anything changed; without a running agent nothing is served."""

    is_running: bool
    is_online: bool
    http: str
    age_s: float
    reported: Reported


def read(state: StateFolder) -> StatusView:
    """Raises: UsageError if no agent ever ran on this folder, or its status cannot be read."""
    try:
        status = msgspec.json.decode(state.status.read_bytes(), type=AgentStatus)
    except OSError as error:
        raise UsageError(f"{state.root}: no agent has run on this state folder ({error.strerror})") from error
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{state.status}: cannot be read ({error}); a running agent writes it anew"
        ) from error
    running = state.is_locked()
    return StatusView(
        is_running=running,
        is_online=running and status.is_online,
        http=status.http,
        age_s=round((datetime.now(UTC) - status.written).total_seconds(), 1),
        reported=status.reported,
    )


def render(view: StatusView) -> str:
    """A few lines for a person."""
    reported = view.reported
    running = "running" if view.is_running else "not running"
    link = "link up" if view.is_online else "link down"
    lines = [
        f"device   {reported.device}   profile {reported.profile}   agent {running}, {link}",
        f"order    {reported.order_counter or 'none yet'}"
        + (f"   newest refused: {reported.refused}" if reported.refused else ""),
        f"serving  http://{view.http}",
    ]
    for name, deployment in reported.deployments.items():
        lines += ["", f"{name}: {_runs(deployment)}", f"  update   {deployment.state.value}"]
        for title, digest in (("ordered", deployment.ordered), ("committed", deployment.committed)):
            lines.append(f"  {title:8} {digest[:12] if digest else '-'}")
        if deployment.reason:
            lines.append(f"  reason   {deployment.reason}")
    return "\n".join(lines)


def _runs(deployment: DeploymentReport) -> str:
    if deployment.digest is None:
        return "no model runs"
    return f"{deployment.model}@{deployment.model_version} ({deployment.digest[:12]})"
