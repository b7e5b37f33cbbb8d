"""Bodies about the fleet as a whole."""

import msgspec

from fleet.api.common import Text


class FleetView(msgspec.Struct, frozen=True):
    """`GET /status`: the service at a glance. `dropped` counts messages that were refused, by reason.

    Of the services on one database one is the controller; the others serve this API, and take over when it ends.
    """

    fleet: str
    is_frozen: bool
    broker: str
    is_connected: bool
    devices: int
    online: int
    active_rollouts: int
    dropped: dict[str, int]
    is_controller: bool = True


class Freeze(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    is_frozen: bool
    reason: Text = ""
