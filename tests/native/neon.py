"""What the compiler made of the portable kernels for aarch64, read from the disassembly.

    python3 tests/native/neon.py build/native-aarch64/plain/kernel/cpu/isa_portable.o

Emulation says nothing of speed, so this keeps what speed rests on: multiply-adds of whole vectors,
innermost loops of tiles that leave the stack alone, halves converted by instructions. Exits with 1
where one of these is lost.
"""

import re
import subprocess
import sys
from collections.abc import Iterator

LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)")
BRANCH = re.compile(r"^(b|b\.\w+|cbn?z|tbn?z|bl|br|blr|ret)$")
FEWEST = 8  # multiply-adds that make a loop a tile's


def functions(text: str) -> Iterator[list[tuple[int, str, str]]]:
    """Each function as (address, operation, operands)."""
    lines: list[tuple[int, str, str]] = []
    for line in text.splitlines():
        if re.match(r"^[0-9a-f]+ <.*>:$", line):
            yield lines
            lines = []
        elif found := LINE.match(line):
            lines.append((int(found[1], 16), found[2], found[3]))
    yield lines


def innermost_loops(lines: list[tuple[int, str, str]]) -> Iterator[list[tuple[int, str, str]]]:
    """The bodies of loops that hold no other branch."""
    places = {address: k for k, (address, _, _) in enumerate(lines)}
    last = -1  # the latest branch but this one
    for k, (address, operation, operands) in enumerate(lines):
        if not BRANCH.match(operation):
            continue
        target = re.search(r"\b([0-9a-f]+) <", operands)
        begin = places.get(int(target[1], 16)) if target else None
        if begin is not None and lines[begin][0] < address and begin > last:
            yield lines[begin : k + 1]
        last = k


def main(path: str) -> int:
    """Counts, prints one line and returns the exit status."""
    command = ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", path]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    tiles = through_stack = 0
    for lines in functions(text):
        for body in innermost_loops(lines):
            if sum(op in ("fmla", "fmls") for _, op, _ in body) < FEWEST:
                continue
            tiles += 1
            through_stack += any("[sp" in operands for _, _, operands in body)
    counts = {op: len(re.findall(rf"\s{op}\s+v", text)) for op in ("fmla", "fcvtl", "fcvtn")}
    scalar = len(re.findall(r"\sfmadd\s", text))
    print(
        f"{path.rpartition('/')[2]}: {tiles} loops of tiles, {through_stack} through the stack; "
        + ", ".join(f"{number} {op}" for op, number in counts.items())
        + f", {scalar} scalar multiply-adds"
    )
    return int(tiles < 100 or through_stack > 0 or scalar > 0 or min(counts.values()) < 50)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
