"""What the converters, the device agent and the fleet share, and the `edgekit` command."""

__version__ = "0.1.0"
