"""What outlives a build: converted artifacts, whole builds, the lock."""
