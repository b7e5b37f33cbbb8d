"""What a newcomer reads and runs: the README, as printed."""

import sys
from pathlib import Path

# The tests share helpers, and importlib mode does not look beside a test for them.
sys.path.insert(0, str(Path(__file__).parent))
# For the ports.
sys.path.append(str(Path(__file__).parent.parent / "fleet"))
