"""Commands: what the fleet asks of this device once, beside what it orders it to run."""
