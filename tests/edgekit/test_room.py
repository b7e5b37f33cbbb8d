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


@pytest.mark.parametrize(
    ("free", "peak", "running", "overlap", "fits"),
    [
        (480, 480, 300, True, True),
        (479, 480, 300, True, False),
        (180, 480, 300, False, True),
        (179, 480, 300, False, False),
        (None, 480, 300, True, True),
        (1, None, 300, True, True),
    ],
)
def test_old_and_new_must_fit_into_memory_at_once_or_the_new_one_in_place_of_the_old(
    free, peak, running, overlap, fits
):
    assert (room.memory_refusal(free, peak, running, overlap=overlap) == "") is fits


def test_a_refusal_for_memory_gives_all_figures():
    told = room.memory_refusal(212, 480, 300, overlap=True)
    assert told == "not enough memory: needs 480 MB beside the 300 MB of what runs, 212 MB are free"
