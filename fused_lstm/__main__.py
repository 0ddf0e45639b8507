"""`python -m fused_lstm`; see info.py."""

import sys

from .info import main

if __name__ == "__main__":
    sys.exit(main())
