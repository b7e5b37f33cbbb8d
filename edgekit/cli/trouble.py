"""What the system refuses, as a sentence: which file, what happened, what to do."""

import errno
import os

# What can be done about it.
_HINTS = {
    errno.ENOSPC: "free some space, or write elsewhere (--out, --cache, TMPDIR)",
    errno.EDQUOT: "free some of your quota, or write elsewhere (--out, --cache, TMPDIR)",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or write elsewhere",
    errno.EROFS: "choose a folder that can be written (--out, --cache, TMPDIR)",
    errno.EACCES: "choose a folder that you may use, or change its permissions",
    errno.EPERM: "choose a folder that you may use, or change its permissions",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENOMEM: "end other programs, or use fewer --jobs",
}
# Those for which the call is at fault, not the system.
_USAGE = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG,
}  # fmt: skip


def sentence(error: OSError) -> str:
    """For a person, without a traceback."""
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    what = error.strerror or str(error) or type(error).__name__
    hint = _HINTS.get(error.errno or 0, "")
    return f"{where}{what}; {hint}" if hint else f"{where}{what}"


def exit_code(error: OSError) -> int:
    """2 for what was asked wrongly, 4 for what the system failed at."""
    return 2 if error.errno in _USAGE else 4
