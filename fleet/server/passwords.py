"""How people's passwords are kept and checked: scrypt (RFC 7914), with a salt of its own for each.

Costs: N = 2^15, r = 8, p = 3, 32 MiB and about 0.3 s on a small server; one of the equivalent settings of the OWASP
Password Storage Cheat Sheet. They are kept beside each hash, so raising them here spoils none that is there.

Always true
 1. At most `_AT_ONCE` hashes are computed at a time: logins cannot fill the memory.
 2. A name that nobody has takes as long as a wrong password.
"""

import base64
import hashlib
import hmac
import os
import threading

from edgekit.errors import UsageError

_LOG2_N, _R, _P = 15, 8, 3
_MAX_MEMORY = 256 << 20
_AT_ONCE = threading.BoundedSemaphore(2)
# NIST SP 800-63B-4, 3.1.1.2: a password that is the only factor has at least 15 characters; composition rules are
# discouraged.
MIN_LENGTH, MAX_LENGTH = 15, 256


def check_new(password: str, name: str) -> None:
    """Raises: UsageError for a password that is too easy; the text never repeats it."""
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise UsageError(
            f"a password has {MIN_LENGTH} to {MAX_LENGTH} characters, for instance four unrelated words"
        )
    if len(set(password)) < 5 or name.lower() * 2 in password.lower():
        raise UsageError("this password is one of the first to be tried; take four unrelated words")


def hashed(password: str) -> str:
    """`scrypt$15$8$3$SALT$HASH`, base64."""
    salt = os.urandom(16)
    key = _derive(password, salt, _LOG2_N, _R, _P)
    return "$".join(("scrypt", str(_LOG2_N), str(_R), str(_P), _text(salt), _text(key)))


def is_right(password: str, kept: str | None) -> bool:
    """Whether this is the password; None, for who does not exist, is never right and takes as long."""
    _, log2_n, r, p, salt, key = (kept or _NOBODY).split("$")
    found = _derive(password, base64.b64decode(salt), int(log2_n), int(r), int(p))
    return hmac.compare_digest(found, base64.b64decode(key)) and kept is not None


def _derive(password: str, salt: bytes, log2_n: int, r: int, p: int) -> bytes:
    with _AT_ONCE:
        return hashlib.scrypt(
            password.encode(), salt=salt, n=1 << log2_n, r=r, p=p, maxmem=_MAX_MEMORY, dklen=32
        )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


_NOBODY = "$".join(("scrypt", str(_LOG2_N), str(_R), str(_P), _text(bytes(16)), _text(bytes(32))))
