"""Looks, before anything is downloaded, whether this machine can build and run the project.

    python3 tools/preflight.py FOLDER       FOLDER is where the virtual environment will lie

Standard library only, and written so that an old Python can still read it and say that it is too
old. Each thing that is missing gets one line with its remedy; the exit code is 1 if there is any.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile

OLDEST, NEWEST = (3, 10), (3, 14)
GIGABYTES_NEEDED = 2.0  # torch for the CPU, torchvision, what training needs, and the build
GIGABYTES_WITH_CUDA = 6.0  # where pip's index has torch with CUDA only

PROGRAM = "#include <optional>\nint main() { return std::optional<int>(0).value(); }\n"


def python_version(version=None):
    """Problem with this Python's version, or None."""
    version = tuple((version or sys.version_info)[:2])
    if OLDEST <= version <= NEWEST:
        return None
    return "Python {}.{} to {}.{} is needed, this is {}.{}: make PYTHON=python3.12 ...".format(
        *(OLDEST + NEWEST + version)
    )


def venv_module():
    """Problem with making virtual environments, or None."""
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    package = "python{}.{}-venv".format(*sys.version_info[:2])
    return "Python's {} is missing: apt-get install {} (or your system's like)".format(
        " and ".join(missing), package
    )


def compiler(command=None):
    """Problem with the C++17 compiler, or None."""
    command = command or os.environ.get("CXX") or "g++"
    program = command.split()
    if not program or shutil.which(program[0]) is None:
        return "no C++ compiler '{}': apt-get install g++, or set CXX".format(command)
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "probe.cpp")
        with open(source, "w", encoding="ascii") as file:
            file.write(PROGRAM)
        built = subprocess.run(
            [*program, "-std=c++17", "-c", source, "-o", source + ".o"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if built.returncode == 0:
        return None
    return "'{}' cannot compile C++17: install g++ 9 or newer, or set CXX".format(command)


def python_header(folder=None):
    """Problem with Python's C header, or None."""
    folder = folder or sysconfig.get_paths()["include"]
    if os.path.exists(os.path.join(folder, "Python.h")):
        return None
    package = "python{}.{}-dev".format(*sys.version_info[:2])
    return "Python.h is not in {}: apt-get install {} (or your system's like)".format(
        folder, package
    )


def disk_space(folder, needed=GIGABYTES_NEEDED):
    """Problem with the space for the virtual environment, or None."""
    if os.path.isdir(os.path.join(folder, "lib")):
        return None  # it is there already
    place = os.path.abspath(folder)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free / 1e9
    if free >= needed:
        if free < GIGABYTES_WITH_CUDA:
            note = (
                "preflight: {:.1f} GB free: too little for torch with CUDA; if pip's index has only"
            )
            print(note.format(free), "that, make TORCH_INDEX=(one with CPU wheels) ...")
        return None
    message = "{:.1f} GB are needed in {}, {:.1f} are free: make room, or make VENV=/elsewhere ..."
    return message.format(needed, place, free)


def main(arguments):
    """Prints what is missing; returns the exit code."""
    folder = arguments[0] if arguments else ".venv"
    checks = (
        python_version(),
        venv_module(),
        compiler(),
        python_header(),
        disk_space(folder),
    )
    problems = [problem for problem in checks if problem]
    for problem in problems:
        print("preflight: " + problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
