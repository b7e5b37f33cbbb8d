"""From a chosen candidate to its bundle file."""
