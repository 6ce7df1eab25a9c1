"""Lets the tests here import `kernel_oracle`, which the importlib mode of pytest does not by itself."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
