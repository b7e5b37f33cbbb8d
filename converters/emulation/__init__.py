"""Emulated ARM: bundles run under qemu's user mode with an arm64 Python and the engines' arm64 wheels.

`setup` fetches all of it once, when asked to; `machine` runs a program in it; `verify` runs a bundle's self-test.
"""
