"""Prints the requirements of one extra of the installed package, for pip's command line.

    python tools/extra.py dev

`pip install -e .[dev]` would say the same but compile the extension again.
"""

import re
import sys
from importlib.metadata import requires

EXTRA = re.compile(
    r"""\s*;\s*((?P<marker>.+?)\s+and\s+)?extra\s*==\s*["'](?P<name>[^"']+)["']\s*$"""
)


def requirements(extra: str) -> list[str]:
    """The requirements that pyproject.toml lists for an extra.

    Raises:
        KeyError: there is no such extra.
    """
    found = []
    for line in requires("fused-lstm") or []:
        match = EXTRA.search(line)
        if match and match["name"] == extra:
            marker = f";{match['marker']}" if match["marker"] else ""
            found.append((line[: match.start()] + marker).replace(" ", ""))
    if not found:
        raise KeyError(extra)
    return found


if __name__ == "__main__":
    print(*requirements(sys.argv[1]))
