"""Entry point of ``python -m fused_lstm.training``; everything of substance is in ``cli``."""

import sys

from fused_lstm.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
