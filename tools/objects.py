"""Where the extension's objects lie: a folder for each Python and torch, so that a rebuild is
incremental and other builds (tests/native) can link the kernels as they ship.

    python tools/objects.py      prints the folder of this environment's build of fused_lstm._C
"""

import sys
from importlib import metadata


def folder(torch_version: str) -> str:
    """Relative to the checkout."""
    return f"build/{sys.implementation.cache_tag}-torch{torch_version}"


if __name__ == "__main__":
    print(f"{folder(metadata.version('torch'))}/fused_lstm._C")
