"""What deploy/ holds, and what runs by it."""

import sys
from pathlib import Path

# The tests share helpers with the fleet's, the agent's and the newcomer's, and importlib mode does not look beside a test.
_TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(_TESTS / "fleet"), str(_TESTS / "newcomer")]
