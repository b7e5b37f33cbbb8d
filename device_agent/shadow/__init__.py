"""A second bundle that gets copies of live inputs, and never answers anybody."""
