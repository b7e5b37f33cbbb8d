"""What engines and converters chatter is not shown; what a failure says is."""

import os
import subprocess
import sys

import pytest

from edgekit.quiet import first_line, hushed


def says(text: str) -> None:
    """As native code does, to the descriptor itself."""
    os.write(2, text.encode())


def fails(kind: type[BaseException]) -> None:
    with hushed():
        says("ERROR: cannot allocate")
        raise kind


def test_chatter_is_swallowed_and_what_comes_after_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    with hushed():
        says("INFO: a delegate")
    says("a warning")
    assert capfd.readouterr().err == "a warning"


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_what_was_said_before_a_failure_is_shown_after_all(
    kind: type[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(kind):
        fails(kind)
    assert "ERROR: cannot allocate" in capfd.readouterr().err


def test_without_a_standard_error_nothing_is_hushed_and_nothing_fails() -> None:
    program = "import sys, edgekit.quiet as quiet\nwith quiet.hushed(): print('done')"
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program],
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_the_line_that_says_what_happened_is_told_not_where_in_the_tool_it_was() -> None:
    error = RuntimeError(
        "Exception from src/inference/src/cpp/core.cpp:117:\nException from src/inference/src/dev/plugin.cpp:54:\n"
        "Check 'shape.merge_into(a, b)' failed at src/core/gather.hpp:56:\nWhile validating node 'GatherElements y':\n"
        "Shapes [1,64] and [1,5] are not consistent\n\n"
    )
    assert first_line(error) == "RuntimeError: Shapes [1,64] and [1,5] are not consistent"
    assert first_line(ValueError("\n one\ntwo")) == "ValueError: one"
    assert first_line(RuntimeError("Exception from a.cpp:1:")) == "RuntimeError: Exception from a.cpp:1:"
    assert first_line(ValueError()) == "ValueError: "
