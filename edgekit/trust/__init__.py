"""Verifying what came from outside. Signing and keys live with the publisher (`fleet.publish`)."""
