"""The one boundary behind which what a caller sent is read.

Always true
 1. Whatever goes wrong while a request is read is the caller's mistake (InputError): libraries fail in more ways than
    anybody has listed, and none of them may count against the model.
"""

from collections.abc import Callable
from typing import TypeVar

from edgekit.errors import EdgeKitError, InputError

T = TypeVar("T")


class MediaTypeError(InputError):
    """A content type or coding that is not taken here."""

    code = "media-type"
    kind = "media-type"
    http_status = 415


class TooLargeError(InputError):
    """A body that unfolds to more than is taken here."""

    code = "too-large"
    kind = "too-large"
    http_status = 413


def read(work: Callable[[], T]) -> T:
    """`work`'s result. Raises: InputError, nothing else."""
    try:
        return work()
    except InputError:
        raise
    except EdgeKitError as error:
        raise InputError(str(error)) from error
    except MemoryError as error:
        raise InputError("the request asks for more memory than there is", "too-large") from error
    except Exception as error:  # the boundary: see the module
        raise InputError(f"the request cannot be read ({type(error).__name__}: {error})"[:500]) from error
