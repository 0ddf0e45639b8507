"""The module csrc/binding/module.cpp builds. Sizes: T steps, B rows, I features, H units, P, D."""

def build_info() -> dict[str, str | list[str]]:
    """Keys version, compiler, torch_target, isas (compiled in)."""

def cpu_features() -> dict[str, bool]:
    """What the processor and the system offer, by name."""

def isa() -> str:
    """The instruction set that kernels run with."""

def set_isa(name: str) -> None:
    """Selects another for the whole process; ValueError when it cannot run here."""

def isas() -> list[str]:
    """Those that run here."""

def workspace_bytes(
    T: int, B: int, I: int, H: int, P: int, D: int, dtype: str, training: bool, threads: int
) -> int:
    """Scratch of one inference call, or of the larger half of a training step."""

def reserve_bytes(T: int, B: int, I: int, H: int, P: int, D: int, dtype: str) -> int:
    """What forward keeps for backward."""

def explain_plan(
    T: int,
    B: int,
    I: int,
    H: int,
    P: int,
    D: int,
    dtype: str,
    training: bool,
    threads: int,
    options: bool = False,
) -> str:
    """One line: how the kernels compute these sizes; options: with resets, lengths or cells."""

def explain_frozen(T: int, B: int, I: int, H: int, D: int, weights: str, threads: int) -> str:
    """The same from frozen weights."""

def empty_cache() -> int:
    """Gives the scratch pool's unused memory back to the system; returns its bytes."""

def cache_bytes() -> int:
    """Unused bytes the scratch pool holds."""

def cache_limit() -> int:
    """The most unused bytes it may hold."""

def set_cache_limit(bytes: int) -> None:
    """Sets that limit and gives back what is above it."""

def prefer_large_pages(address: int, bytes: int) -> None:
    """Asks for large pages inside memory of a tensor that nobody has written yet."""

def set_concurrent(concurrent: bool) -> None:
    """Whether the chunks of torch's parallel loops run at once on threads of their own."""
