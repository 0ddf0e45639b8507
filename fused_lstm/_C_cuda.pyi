"""The module csrc/binding/module_cuda.cpp builds. Sizes: T steps, B rows, I features, H, P, D."""

def build_info() -> dict[str, str | list[str]]:
    """Keys version, toolkit ("13.0"), architectures (as in "9.0a", "12.0+PTX")."""

def device_facts(index: int) -> dict[str, int]:
    """Keys arch (90), sms, shared_per_block and shared_per_sm (bytes) of a device, and clusters_2,
    clusters_4, clusters_8, clusters_16: how many clusters of so many blocks run there at once.

    RuntimeError, with the remedy, when there is no such device or the driver is too old.
    """

def obstacle(arch: int) -> str:
    """Why this build has no code for a device of that architecture, with the remedy, or ""."""

def force_family(name: str | None) -> None:
    """Has one of stepwise, single_block, cluster, grid compute every call, None: the plan chooses.

    For tests.
    """

def forced_family() -> str | None:
    """What force_family said."""

def set_fault(index: int) -> None:
    """As if a block of an earlier call on that device had waited in vain for another. For tests."""

def set_across_blocks(on: bool) -> None:
    """Whether the plan may choose cluster and grid, whose blocks wait for each other."""

def reserve_bytes(
    T: int, B: int, I: int, H: int, P: int, D: int, dtype: str, recompute: bool = False
) -> int:
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
    tf32: bool,
    facts: dict[str, int],
    measured: str | None = None,  # the family that was measured to be the quickest
    options: bool = False,  # what nn.LSTM lacks, as cells of every step
) -> str:
    """One line: how the kernels compute a problem of these sizes on a device with these facts."""

def families(
    T: int,
    B: int,
    I: int,
    H: int,
    P: int,
    D: int,
    dtype: str,
    training: bool,
    tf32: bool,
    facts: dict[str, int],
) -> list[dict[str, str | float | int]]:
    """The families that may compute a problem, the plan's own choice first. Keys family, us (of a
    step, predicted), blocks (that stay on the device) and room (for how many).
    """

def call_class(
    T: int,
    B: int,
    I: int,
    H: int,
    P: int,
    D: int,
    dtype: str,
    training: bool,
    tf32: bool,
    packed: bool,
) -> str:
    """The name of the calls that share one measurement with this one."""

def set_choice(
    index: int,
    T: int,
    B: int,
    I: int,
    H: int,
    P: int,
    D: int,
    dtype: str,
    training: bool,
    tf32: bool,
    packed: bool,
    family: str | None,
) -> None:
    """Has a family compute calls of this class on a device from now on; None: the plan chooses."""

def choice(
    index: int,
    T: int,
    B: int,
    I: int,
    H: int,
    P: int,
    D: int,
    dtype: str,
    training: bool,
    tf32: bool,
    packed: bool,
) -> str | None:
    """What set_choice said."""
