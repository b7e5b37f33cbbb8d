"""What an agent was asked for, and who it is: what the supervisor is made of."""

from dataclasses import dataclass
from pathlib import Path

from device_agent.account import Account
from device_agent.agentfile import NO_FILE, AgentFile
from device_agent.clock import Clock
from device_agent.folder import StateFolder
from device_agent.identity import DeviceIdentity, DeviceKey
from device_agent.listen import Credentials
from device_agent.network import Access


@dataclass(frozen=True)
class Settings:
    """What `edgekit agent run` was asked for. `profile` None means: find it. `private` is no business of workers,
    which run as `account`; None for the agent's own user. `file` is `agent.toml`.
    """

    state: StateFolder
    http: tuple[str, ...]
    secured: Credentials | None
    enrolment: Path | None
    profile: str | None
    window_s: float
    log_json: bool
    serves_despite_change: bool = False
    private: tuple[Path, ...] = ()
    name: str = ""
    file: AgentFile = NO_FILE
    account: Account | None = None


@dataclass(frozen=True)
class Who:
    """One identity with what it takes to be it, and the clock that its certificate and orders are judged by."""

    identity: DeviceIdentity
    key: DeviceKey
    access: Access
    clock: Clock
