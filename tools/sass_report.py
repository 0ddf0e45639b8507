"""What nvcc made of the CUDA kernels: registers, shared memory and spills, read from the binary.

    python tools/sass_report.py fused_lstm/_C_cuda.*.so

One line per kernel and architecture. A persistent kernel runs its whole sequence in one loop, and a
register that is spilled inside that loop is written and read again at every step: that fails the
report, with exit code 1. A spill before or after the loop is only counted. The disassembly says
where an instruction stands; what ptxas prints while compiling (-Xptxas -v) does not. A persistent
kernel that only traps, as on GPUs that the plan never chooses it for, is shown as that. "shared" is
what is fixed at compile time; persistent kernels ask for more when they are launched.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

PERSISTENT = r"(single_block|sliced)::\w*(forward|backward)_kernel"  # by their readable names
ARCH = re.compile(r"^arch = (sm_\w+)$|^\s*code for (sm_\w+)$")
FUNCTION = re.compile(r"^\s*Function\s*:?\s*([\w$.]+)")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")


class Instruction(NamedTuple):
    address: int
    name: str  # as in "BAR.SYNC"
    target: int | None  # of a branch


class Kernel(NamedTuple):
    arch: str
    name: str  # mangled


def kernels(text: str) -> Iterator[tuple[Kernel, list[str]]]:
    """The kernels in the output of cuobjdump, each with its lines."""
    arch, name, lines = "", "", list[str]()
    for line in [*text.splitlines(), "arch = sm_0"]:
        starts_arch, starts_function = ARCH.match(line), FUNCTION.match(line)
        if not (starts_arch or starts_function):
            lines.append(line)
            continue
        if name:
            yield Kernel(arch, name), lines
        lines, name = [], starts_function[1] if starts_function else ""
        arch = (starts_arch[1] or starts_arch[2]) if starts_arch else arch


def instructions(lines: Sequence[str]) -> list[Instruction]:
    """The instructions of one kernel in the output of `cuobjdump -sass`."""
    found = []
    for match in filter(None, map(INSTRUCTION.match, lines)):
        address, name, operands = int(match[1], 16), match[2], match[3]
        targets = re.findall(r"\b0x[0-9a-f]+\s*$", operands) if name.startswith("BRA") else []
        found.append(Instruction(address, name, int(targets[0], 16) if targets else None))
    return found


def is_spill(instruction: Instruction) -> bool:
    """Whether it reads or writes local memory, where spilled registers and indexed arrays lie."""
    return instruction.name.split(".")[0] in {"LDL", "STL"}


def step_loops(code: Sequence[Instruction]) -> list[tuple[int, int]]:
    """First and last address of every loop in which the threads of a block meet.

    A branch to an earlier address closes a loop. One that loads weights before the first step has
    no barrier in it; the one over the steps has.
    """
    barriers = [i.address for i in code if i.name.split(".")[0] in {"BAR", "UCGABAR_WAIT"}]
    loops = [(i.target, i.address) for i in code if i.target is not None and i.target <= i.address]
    return [loop for loop in loops if any(loop[0] <= b <= loop[1] for b in barriers)]


def demangled(names: Sequence[str]) -> dict[str, str]:
    """Readable names, where there is a c++filt to make them; without parameters."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return {name: name for name in names}
    done = subprocess.run(
        [tool], input="\n".join(names), capture_output=True, text=True, check=True
    )
    readable = (re.sub(r"^void |\(anonymous namespace\)::", "", n) for n in done.stdout.split("\n"))
    return {name: new.partition("(")[0] for name, new in zip(names, readable, strict=False)}


def report(usage: str, sass: str, persistent: str = PERSISTENT) -> tuple[list[str], list[str]]:
    """Lines of a table, and complaints.

    Args:
        usage: the output of `cuobjdump -res-usage`.
        sass: the output of `cuobjdump -sass`.
        persistent: regular expression that finds persistent kernels by their readable name.
    """
    resources = {kernel: USAGE.search("\n".join(lines)) for kernel, lines in kernels(usage)}
    names = demangled(sorted({kernel.name for kernel in resources}))
    table = ["arch     registers  stack  shared  spills  in step loop  kernel"]
    complaints = []
    for kernel, lines in sorted(kernels(sass)):
        used = resources.get(kernel)
        if used is None:
            complaints.append(
                f"{kernel.arch} {kernel.name}: cuobjdump says nothing of its registers"
            )
            continue
        name, code = names[kernel.name], instructions(lines)
        spills = [i.address for i in code if is_spill(i)]
        loops = step_loops(code)
        inside = sum(any(first <= s <= last for first, last in loops) for s in spills)
        is_persistent = re.search(persistent, name) is not None
        is_trap = not loops and any(i.name == "BPT.TRAP" for i in code)
        shown = "-" if not is_persistent else "traps" if is_trap else str(inside)
        table.append(
            f"{kernel.arch:<8} {used[1]:>9}  {used[2]:>5}  {used[3]:>6}  {len(spills):>6}  "
            f"{shown:>12}  {name}"
        )
        if is_persistent and not loops and not is_trap:
            complaints.append(f"{kernel.arch} {name}: persistent, but no loop with a barrier in it")
        if is_persistent and inside:
            complaints.append(f"{kernel.arch} {name}: {inside} spill instructions in its step loop")
    if len(table) == 1:
        complaints.append("no kernel was found")
    return table, complaints


def find_cuobjdump() -> str | None:
    """CUOBJDUMP, else that of the toolkit, of the package triton, or of nvidia-cuda-cuobjdump."""
    folders = [
        Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home
    ]
    for package, places in (("triton", "backends/nvidia/bin"), ("nvidia", "*/bin")):
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            folders += Path(root).glob(places)
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)])
    return shutil.which(os.environ.get("CUOBJDUMP", "cuobjdump"), path=path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report of a binary; returns 1 where there is something to complain of."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary", type=Path)
    parser.add_argument("--persistent", default=PERSISTENT, help="regular expression of names")
    options = parser.parse_args(arguments)
    tool = find_cuobjdump()
    if tool is None:
        parser.error(
            "no cuobjdump: it comes with the CUDA toolkit, with the package triton, or by "
            "python -m pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm; or set CUOBJDUMP"
        )
    # It calls nvdisasm, which lies beside it.
    path = os.pathsep.join([str(Path(tool).parent), os.environ.get("PATH", "")])
    outputs = []
    for flag in ("-res-usage", "-sass"):
        command = [tool, flag, str(options.binary)]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PATH": path}
        )
        if done.returncode != 0:
            parser.error(f"{' '.join(command)} failed: {done.stderr.strip()}")
        outputs.append(done.stdout)
    table, complaints = report(*outputs, options.persistent)
    print("\n".join(table))
    for complaint in complaints:
        print(f"sass_report: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
