"""The look that all pages of EdgeKit share, the build's report and the fleet's: colours, type, light and dark.

Always true
 1. Text keeps the contrast of WCAG 2.2 AA (4.5:1) on every ground that it stands on, light and dark.
 2. Nothing is fetched from anywhere: fonts are those that the system has.
"""

from functools import cache
from importlib import resources


@cache
def tokens() -> str:
    """The style sheet of custom properties, to stand before a page's own."""
    return resources.files(__package__).joinpath("tokens.css").read_text(encoding="utf-8")
