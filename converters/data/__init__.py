"""The user's samples: read, split into halves, shifted."""
