r"""Text of others on this terminal: what a device, a person or a service says is shown, and does nothing.

Always true
 1. No character passes that a terminal acts on or hides: escape sequences, line ends, deletions, what turns the direction
    of writing round or takes no room. It is shown as Python would write it, `\x1b`, so that nobody overlooks it.
"""

import re

# C0 and C1 controls with DEL; soft hyphen, marks and overrides of direction, joiners and others without width; line and
# paragraph separators; what is set aside for tags; halves of surrogates, which no terminal's encoding takes.
_ACTS = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_IN_JSON = re.compile(_ACTS.pattern.replace("\x00-\x1f", ""))


def text(given: object) -> str:
    """One line, and only what can be seen."""
    return _ACTS.sub(lambda found: found[0].encode("unicode_escape").decode(), str(given))


def lines(given: str) -> str:
    """The same for several lines, such as a message with a caret."""
    return "\n".join(text(line) for line in given.split("\n"))


def json(given: str) -> str:
    """JSON that means the same; its encoder has escaped the controls below a space itself."""
    return _IN_JSON.sub(_escaped, given)


def toml(given: str) -> str:
    """The same for TOML, which knows longer escapes, and no halves of surrogates."""
    return _IN_JSON.sub(lambda found: f"\\U{ord(found[0]):08x}", given)


def _escaped(found: "re.Match[str]") -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
