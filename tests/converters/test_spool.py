"""Calibration samples of the user's code are made once in a build."""

from itertools import islice

import numpy as np
import pytest

from converters.data import spool
from converters.data.reading import Source
from converters.data.spool import Spool
from edgekit.samples import Samples, stacked

CHUNKS = [
    Samples(
        {"x/1": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.arange(2)}, sequence=np.zeros(2, int)
    ),
    Samples({"x/1": np.ones((1, 3), np.float32)}, labels=np.array([1])),
    Samples({"x/1": np.ones((1, 0, 3), np.uint8)}),
]


def made(folder, chunks=CHUNKS):
    """The spool, and how often the generator was begun."""
    begun = []
    generator = Source("data.py:calibration", lambda: begun.append(1) or iter(chunks))
    return Spool(folder / "calibration", generator.what, lambda: generator), begun


def test_later_passes_give_the_same_samples_without_the_generator(tmp_path):
    spooled, begun = made(tmp_path)
    first = spooled.source().fingerprint()
    again = list(spooled.source().chunks())
    assert first == spooled.source().fingerprint() == Source("", lambda: iter(CHUNKS)).fingerprint()
    assert len(begun) == 1
    for found, wanted in zip(again, CHUNKS, strict=True):
        assert list(found.inputs) == list(wanted.inputs)
        for name, array in wanted.inputs.items():
            assert found.inputs[name].dtype == array.dtype
            np.testing.assert_array_equal(found.inputs[name], array)
        assert [found.starts(row) for row in range(len(found))] == [
            wanted.starts(row) for row in range(len(wanted))
        ]


def test_another_process_reads_what_the_first_has_kept(tmp_path):
    made(tmp_path)[0].source().fingerprint()
    other, begun = made(tmp_path)
    assert len(list(other.source().chunks())) == len(CHUNKS)
    assert not begun


def test_a_pass_that_ends_early_keeps_nothing(tmp_path):
    spooled, begun = made(tmp_path)
    assert len(list(islice(spooled.source().chunks(), 2))) == 2
    assert not list(tmp_path.iterdir())
    assert len(list(spooled.source().chunks())) == len(CHUNKS)
    assert len(begun) == 2


@pytest.mark.parametrize("cause", ["too many bytes", "no room", "several shapes"])
def test_what_cannot_be_kept_is_made_again(tmp_path, monkeypatch, cause):
    chunks = CHUNKS
    if cause == "too many bytes":
        monkeypatch.setattr(spool, "MOST_BYTES", 100)
    elif cause == "no room":
        monkeypatch.setattr(np, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "no space")))
    else:
        chunks = [Samples({"x/1": stacked([np.ones(2), np.ones(3)])})]
    spooled, begun = made(tmp_path, chunks)
    for _ in range(2):
        assert len(list(spooled.source().chunks())) == len(chunks)
    assert len(begun) == 2
    assert not list(tmp_path.iterdir())


def test_what_the_generator_raises_is_raised_and_nothing_kept(tmp_path):
    def broken():
        yield CHUNKS[0]
        raise ValueError("no more")

    spooled = Spool(tmp_path / "calibration", "data.py:calibration", lambda: Source("", broken))
    with pytest.raises(ValueError, match="no more"):
        list(spooled.source().chunks())
    assert not list(tmp_path.iterdir())
