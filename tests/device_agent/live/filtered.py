"""Runs a command under the system call filter of the agent's unit, as systemd would set it up: `filtered.py UNIT WORDS…`.

What each `SystemCallFilter=` line names is expanded by `systemd-analyze syscall-filter`, numbers are those of this machine's
kernel headers, and everything else answers EPERM (systemd.exec(5), SystemCallFilter=).
"""

import ctypes
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
# linux/seccomp.h, linux/audit.h, linux/bpf_common.h
_ALLOW, _ERRNO_EPERM = 0x7FFF0000, 0x00050000 | 1
_ARCH_X86_64 = 0xC000003E
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


def calls_of(name: str) -> set[str]:
    """The calls of a group, or the call itself."""
    if not name.startswith("@"):
        return {name}
    words = ["systemd-analyze", "syscall-filter", "--no-pager", name]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    found = [line.strip() for line in listed if line.startswith("    ") and not line.strip().startswith("#")]
    return set().union(*(calls_of(one) for one in found))


def allowed(unit: str) -> set[str]:
    """By the lines in their order; the first says whether it is a list of what is allowed."""
    found = calls_of("@default")
    for line in re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE):
        names = set().union(*(calls_of(name) for name in line.removeprefix("~").split()))
        found = found - names if line.startswith("~") else found | names
    return found


def install(names: set[str]) -> None:
    """Hold this process and all that it becomes to these calls."""
    header = HEADER.read_text()
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", header)}
    steps = [
        (_LOAD, 0, 0, 4),
        (_JUMP_IF_EQUAL, 1, 0, _ARCH_X86_64),
        (_RETURN, 0, 0, _ERRNO_EPERM),
        (_LOAD, 0, 0, 0),
    ]
    for number in sorted(numbers[name] for name in names & numbers.keys()):
        steps += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    steps.append((_RETURN, 0, 0, _ERRNO_EPERM))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for words in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _MODE_FILTER, program)):
        if libc.prctl(*words) != 0:
            raise OSError(ctypes.get_errno(), "the filter cannot be installed")


if __name__ == "__main__":
    install(allowed(Path(sys.argv[1]).read_text()))
    os.execvp(sys.argv[2], sys.argv[2:])
