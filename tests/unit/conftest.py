"""Puts this folder's `front_kit` within reach of its tests, whichever way pytest was started."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
