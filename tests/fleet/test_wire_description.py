"""What the description of the wire says of topics is what the broker's rules allow and the programs do."""

from edgekit.wire.asyncapi import CHANNELS
from fleet.server import broker_config


def test_who_sends_where_is_what_the_broker_allows() -> None:
    for channel in CHANNELS:
        allowed = broker_config.READS if channel.sender == "fleet" else broker_config.WRITES
        assert channel.leaf in allowed, channel.leaf
