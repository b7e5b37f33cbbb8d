"""From recipes to judged candidates: made, mended, searched, timed."""
