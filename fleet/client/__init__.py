"""The fleet's client: `connect` for programs (docs/api.md), and the commands `edgekit fleet …`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet.client.rest import Client as Client
    from fleet.client.rest import connect as connect

__all__ = ["Client", "connect"]


def __getattr__(name: str) -> Any:
    # Not before they are asked for: the commands start without httpx.
    if name in __all__:
        from fleet.client import rest

        return getattr(rest, name)
    raise AttributeError(name)
