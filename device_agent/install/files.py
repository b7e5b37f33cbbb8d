"""The files of an installed agent, as text. `deploy/systemd/edgekit-agent.service` is `unit()` with what is usual."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

SERVICE = "edgekit-agent"
AGENT, WORKER = "edgekit", "edgekit-worker"
STATE = PurePosixPath("/var/lib/edgekit")
SETTINGS = PurePosixPath("/etc/edgekit")
RUNTIME = PurePosixPath("/run/edgekit")
ENROLMENT = SETTINGS / "enrolment.json"
UNIT = PurePosixPath("/etc/systemd/system") / f"{SERVICE}.service"
DROP_INS = PurePosixPath(f"{UNIT}.d")
USERS = PurePosixPath("/etc/sysusers.d/edgekit.conf")
FOLDERS = PurePosixPath("/etc/tmpfiles.d/edgekit.conf")
JOURNAL = PurePosixPath("/etc/systemd/journald.conf.d/edgekit.conf")
WANTED = PurePosixPath("/etc/systemd/system/multi-user.target.wants") / UNIT.name
PROGRAM = PurePosixPath("/opt/edgekit/bin/edgekit")
JOURNAL_SIZE = "128M"


@dataclass(frozen=True)
class Wanted:
    """What a board is to have: the program that its service starts, how much its journal may keep (empty: as it is), and
    the bytes of an enrolment file, if one is given.
    """

    program: PurePosixPath = PROGRAM
    journal_size: str = JOURNAL_SIZE
    enrolment: bytes | None = None


def texts(wanted: Wanted) -> Mapping[PurePosixPath, str]:
    """Every file that an install writes and an uninstall removes. The enrolment file is the user's, and none of these."""
    found = {USERS: users(), FOLDERS: folders(), UNIT: unit(wanted.program)}
    if wanted.journal_size:
        found[JOURNAL] = journal(wanted.journal_size)
    return found


def users() -> str:
    """sysusers.d(5). The worker shares the agent's group, and only that: see device_agent/account.py."""
    return f"""\
# The agent, and what runs models for it. Both may use accelerators, cameras and microphones.
u {AGENT} - "EdgeKit agent" {STATE}
u {WORKER} -:{AGENT} "EdgeKit workers" -
m {AGENT} render
m {AGENT} video
m {AGENT} audio
m {WORKER} render
m {WORKER} video
"""


def folders() -> str:
    """tmpfiles.d(5). The enrolment file holds a token: it is the agent's, and nobody else's in its group."""
    return f"""\
d {SETTINGS} 0750 root {AGENT}
z {ENROLMENT} 0600 {AGENT} {AGENT}
d {STATE} 0710 {AGENT} {AGENT}
# What may be lost at a power cut, such as what `edgekit agent status` reads.
d {RUNTIME} 0700 {AGENT} {AGENT}
"""


def journal(size: str) -> str:
    """journald.conf(5). The agent logs to the journal, which by itself takes up to a tenth of a card."""
    return f"[Journal]\nSystemMaxUse={size}\n"


def unit(program: PurePosixPath = PROGRAM) -> str:
    """systemd.service(5), systemd.exec(5)."""
    return f"""\
# The agent on a device; `edgekit agent install` writes this file. Changes of yours belong in a drop-in
# (`systemctl edit {SERVICE}`), which stays when the agent is installed again.
[Unit]
Description=EdgeKit agent
# It serves without network and clock, and looks for both by itself: it waits for neither.
After=network.target
# Nobody is there to start it again by hand.
StartLimitIntervalSec=0

[Service]
# Ready once it has its place and knows its engines, which takes minutes on the slowest boards; its event loop is what
# pets the watchdog.
Type=notify
NotifyAccess=main
TimeoutStartSec=300
WatchdogSec=60
User={AGENT}
Group={AGENT}
# For accelerators, cameras and microphones, where there are any.
SupplementaryGroups=render video audio
ExecStart={program} agent run --state {STATE} --enrolment {ENROLMENT} --worker-user {WORKER}
Restart=always
RestartSec=5
# A stop that is told is clean; the workers finish what they have.
TimeoutStopSec=60
KillMode=mixed
OOMPolicy=continue
LimitNOFILE=65536
LimitCORE=0
LogRateLimitIntervalSec=30
LogRateLimitBurst=2000

StateDirectory={STATE.name}
StateDirectoryMode=0710
# Where the agent keeps in memory what `edgekit agent status` reads.
RuntimeDirectory={RUNTIME.name}
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
UMask=0077
Environment=PYTHONDONTWRITEBYTECODE=1

# To run workers as {WORKER}, and to end them. The agent hands none of these on to what it starts.
AmbientCapabilities=CAP_SETUID CAP_SETGID CAP_KILL
CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_KILL
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateMounts=yes
# Graphics and neural units, cameras, sound; PrivateDevices would hide them. /proc and /sys stay as they are: the agent
# reads there which board this is, and how much memory its workers take, who are another user's (so no ProtectProc).
DevicePolicy=closed
DeviceAllow=char-drm rw
DeviceAllow=char-accel rw
DeviceAllow=char-video4linux rw
DeviceAllow=char-media rw
DeviceAllow=char-alsa rw
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
# Engines write machine code, so MemoryDenyWriteExecute is not set. What is given back after @privileged: workers change
# their user and lay down capabilities, Landlock confines them, and the clients of a hung one are taken over.
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallFilter=@setuid capset pidfd_getfd landlock_create_ruleset landlock_add_rule landlock_restrict_self
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""
