"""One rule for the room an update needs, on both sides."""

import pytest

from edgekit.protocol import room

MIB = 1 << 20


@pytest.mark.parametrize(
    ("free", "length", "have", "fits"),
    [(84, 10, 0, True), (83, 10, 0, False), (74, 10, 10, True), (10_000, 5_000, 0, False)],
)
def test_download_extracted_copy_and_a_reserve_must_fit(free, length, have, fits):
    assert (room.refusal(free * MIB, length * MIB, have * MIB) == "") is fits


def test_a_refusal_gives_both_figures():
    assert room.refusal(10 * MIB, 10 * MIB) == "not enough space: 10 MiB free, 84 MiB needed"
