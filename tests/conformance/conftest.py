"""The modules beside this file, for tests and for `run.py` alike."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
