"""What setup.py decides about CUDA in made-up environments; what the report of a build reads."""

import os
import stat
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "tools").exists():
    pytest.skip("the source folder is not there", allow_module_level=True)
sys.path.insert(0, str(ROOT / "tools"))
import cuda_build  # noqa: E402
import sass_report  # noqa: E402

sys.path.pop(0)

KNOWN = frozenset({75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121})
TOOLKIT = cuda_build.Toolkit(Path("/opt/cuda"), (13, 0), KNOWN)


def decide(
    torch_cuda: str | None = "13.2",
    toolkit: cuda_build.Toolkit | None = TOOLKIT,
    **environment: str,
) -> cuda_build.Plan:
    return cuda_build.decide(environment, "2.13.0", torch_cuda, lambda _: toolkit)


def test_auto_builds_where_toolkit_and_torch_agree() -> None:
    plan = decide()
    assert plan.toolkit is TOOLKIT
    assert not plan.stub
    assert plan.archs == ("7.5", "8.0", "8.6", "8.9", "9.0a", "10.0", "12.0+PTX")
    assert "with CUDA 13.0 for 7.5;8.0" in plan.reason
    assert "torch 2.13.0 has CUDA 13.2" in plan.reason


OBSTACLES = {
    "torch without CUDA": ({"torch_cuda": None}, "torch 2.13.0 is built without CUDA", "install a"),
    "no toolkit": ({"toolkit": None}, "no CUDA toolkit was found", "or set CUDA_HOME"),
    "another major version": (
        {"torch_cuda": "12.8"},
        "torch 2.13.0 has CUDA 12.8 but the toolkit in /opt/cuda is 13.0",
        "set CUDA_HOME to one of major version 12",
    ),
}


@pytest.mark.parametrize("case", OBSTACLES)
def test_obstacle(case: str) -> None:
    """`auto` says it in one line and goes on, `1` fails with the remedy."""
    changes, reason, remedy = OBSTACLES[case]
    plan = decide(**changes)
    assert plan.toolkit is None
    assert plan.reason == f"for the CPU only, {reason}"
    with pytest.raises(cuda_build.RefusalError) as refused:
        decide(**changes, FUSED_LSTM_CUDA="1")
    assert str(refused.value).startswith(f"FUSED_LSTM_CUDA=1 cannot be met: {reason}: ")
    assert remedy in str(refused.value)


def test_no_toolkit_is_looked_for_in_vain() -> None:
    def find(_: object) -> None:
        pytest.fail("nvcc was called")

    for setting, torch_cuda in (("auto", None), ("0", "13.0")):
        environment = {"FUSED_LSTM_CUDA": setting}
        assert cuda_build.decide(environment, "2.13.0", torch_cuda, find).toolkit is None


def test_zero_and_stub() -> None:
    assert decide(FUSED_LSTM_CUDA="0") == cuda_build.Plan("for the CPU only, as asked")
    stub = decide(torch_cuda=None, FUSED_LSTM_CUDA="stub")
    assert stub.stub
    assert "linked to a stub" in stub.reason
    assert not decide(FUSED_LSTM_CUDA="stub").stub
    with pytest.raises(
        cuda_build.RefusalError, match="FUSED_LSTM_CUDA=stub cannot be met: no CUDA"
    ):
        decide(torch_cuda=None, toolkit=None, FUSED_LSTM_CUDA="stub")
    with pytest.raises(cuda_build.RefusalError, match="expected auto, 1, 0 or stub, got 'yes'"):
        decide(FUSED_LSTM_CUDA="yes")


def test_architectures() -> None:
    older = TOOLKIT._replace(version=(12, 4), known=frozenset({75, 80, 86, 89, 90}))
    assert decide("12.4", older).archs == ("7.5", "8.0", "8.6", "8.9", "9.0a")
    assert decide(TORCH_CUDA_ARCH_LIST="6.0 7.0 8.0 9.0+PTX").archs == ("8.0", "9.0+PTX")
    both = decide(TORCH_CUDA_ARCH_LIST="8.0", FUSED_LSTM_ARCHS="9.0a;12.0")
    assert both.archs == ("9.0a", "12.0")
    for text, message in (
        ("9.9", "9.9: the kernels need 7.5 or newer and nvcc 13.0 compiles for 7.5, 8.0"),
        ("7.0", "7.0: the kernels need 7.5 or newer"),
        ("Hopper", "expected numbers such as 8.0;9.0a, got 'Hopper'"),
    ):
        with pytest.raises(cuda_build.RefusalError, match=message):
            decide(FUSED_LSTM_ARCHS=text)
    assert cuda_build.gencode("9.0a") == ["-gencode=arch=compute_90a,code=sm_90a"]
    assert cuda_build.gencode("12.0+PTX") == [
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("capabilities", "setting"),
    [
        ("9.0\n9.0", "FUSED_LSTM_ARCHS=9.0a"),
        ("8.7\n12.0", "FUSED_LSTM_ARCHS=8.7,12.0"),
        ("6.1\n7.5", "FUSED_LSTM_ARCHS=7.5"),
        ("6.1", "FUSED_LSTM_CUDA=0"),
        ("NVIDIA-SMI has failed", "FUSED_LSTM_CUDA=0"),
    ],
)
def test_a_clone_builds_for_the_gpus_that_are_here(
    capabilities: str, setting: str, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{capabilities}'\n")
    tool.chmod(0o755)
    here = {"PATH": str(tmp_path)}
    assert cuda_build.settings_for_here(here) == setting
    for name in ("FUSED_LSTM_CUDA", "FUSED_LSTM_ARCHS", "TORCH_CUDA_ARCH_LIST"):
        assert cuda_build.settings_for_here({**here, name: "1"}) == ""
    assert cuda_build.settings_for_here({"PATH": ""}) == "FUSED_LSTM_CUDA=0"
    decided = decide(**dict([setting.split("=")]))
    assert (decided.toolkit is None) == (setting == "FUSED_LSTM_CUDA=0")


def test_toolkit_is_found_by_its_headers(tmp_path: Path) -> None:
    home = tmp_path / "cuda-12.9"
    said = 'case "$1" in --version) echo "release 12.9, V1";; *) echo "sm_75\nsm_90";; esac'
    script(home / "bin" / "nvcc", said)
    environment = {"CUDA_HOME": str(home), "PATH": "/nowhere"}
    parts = (home / "include" / "cuda_runtime.h", home / "lib64" / "libcudart_static.a")
    for here, missing in (parts, parts[::-1]):
        here.parent.mkdir(exist_ok=True)
        here.touch()
        missing.unlink(missing_ok=True)
        found = cuda_build.find_toolkit(environment)  # that of /usr/local, if there is one
        assert found is None or found.home != home, missing
    parts[0].touch()
    assert cuda_build.find_toolkit(environment) == (home, (12, 9), {75, 90})
    on_path = cuda_build.find_toolkit({"PATH": str(home / "bin")})
    assert on_path is not None
    assert on_path.home == home


def test_kernels_are_compiled_when_something_changed(tmp_path: Path) -> None:
    home, log = tmp_path / "cuda", tmp_path / "log"
    header, source = tmp_path / "a.h", tmp_path / "a.cu"
    header.touch()
    source.touch()
    script(  # writes the object of -o and the dependencies of -MF
        home / "bin" / "nvcc",
        f'echo "$@" >> {log}\nwhile [ $# -gt 0 ]; do case "$1" in -o) touch "$2";; '
        f'-MF) echo "a.o : {source} \\\\\n {header}" > "$2";; esac; shift; done',
    )
    plan = cuda_build.Plan("", TOOLKIT._replace(home=home), ("7.5",))

    def compiled() -> int:
        objects = cuda_build.compile_kernels(plan, [source], tmp_path / "objects")
        assert objects == [str(tmp_path / "objects" / "a.o")]
        return len(log.read_text().splitlines())

    assert [compiled(), compiled()] == [1, 1]
    made = (tmp_path / "objects" / "a.o").stat().st_mtime
    os.utime(header, (made + 5, made + 5))
    assert compiled() == 2
    os.utime(header, (made - 5, made - 5))
    plan = plan._replace(archs=("8.0",))
    assert [compiled(), compiled()] == [3, 3]
    script(home / "bin" / "nvcc", "exit 1")
    with pytest.raises(cuda_build.RefusalError, match=r"nvcc could not compile .*a\.cu"):
        cuda_build.compile_kernels(plan._replace(archs=("9.0a",)), [source], tmp_path / "objects")


# What cuobjdump 13 prints, shortened. The loop over the steps ends at 00f0; what is spilled at 0020
# and 0120 stands before and after it, and the loop at 0040 loads weights.
USAGE = """
Fatbin elf code:
================
arch = sm_90a
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN12single_block14forward_kernelEPf:
  REG:255 STACK:24 SHARED:1024 LOCAL:0 CONSTANT[0]:548 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _ZN4test9pointwiseEPf:
  REG:32 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:548 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = """
	code for sm_90a
		Function : _ZN12single_block14forward_kernelEPf
	.headerflags	@"EF_CUDA_SM90"
        /*0010*/              @!P0 EXIT ;                             /* 0x000000000000894d */
                                                                      /* 0x000fea0003800000 */
        /*0020*/                   STL.64 [R1+0x8], R2 ;              /* 0x0000080201007387 */
        /*0040*/                   LDG.E R2, desc[UR8][R82.64] ;      /* 0x0000000852027981 */
        /*0050*/             @P1   BRA 0x40 ;                         /* 0xfffffff4004c8947 */
        /*0060*/                   LDS R3, [R4] ;                     /* 0x0000000004037984 */
        /*0070*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;      /* 0x0000000000007b1d */
        /*0080*/                   FFMA R5, R3, R2, R5 ;              /* 0x0000000203057223 */
        /*00f0*/              @!UP0 BRA.U 0x60 ;                      /* 0xfffffff4004c8947 */
        /*0120*/                   LDL R7, [R1] ;                     /* 0x0000000001077983 */
        /*0130*/                   EXIT ;                             /* 0x000000000000794d */
        /*0140*/                   BRA 0x140;                         /* 0xfffffffc00fc7947 */
		Function : _ZN4test9pointwiseEPf
        /*0010*/                   LDL R7, [R1] ;                     /* 0x0000000001077983 */
        /*0020*/                   EXIT ;                             /* 0x000000000000794d */
"""
FFMA = "FFMA R5, R3, R2, R5 ;"


def test_spills_outside_the_step_loop_are_counted() -> None:
    table, complaints = sass_report.report(USAGE, SASS)
    assert not complaints
    rows = [line.split() for line in table[1:]]
    persistent = next(row for row in rows if "forward_kernel" in row[-1])
    assert persistent[:-1] == ["sm_90a", "255", "24", "1024", "2", "0"]
    pointwise = next(row for row in rows if "pointwise" in row[-1])
    assert pointwise[:-1] == ["sm_90a", "32", "0", "0", "1", "-"]


@pytest.mark.parametrize("spill", ["LDL.64 R6, [R1] ;", "STL [R1+0x4], R7 ;", "LDL.LU R6, [R1] ;"])
def test_spill_in_the_step_loop_fails(spill: str) -> None:
    table, complaints = sass_report.report(USAGE, SASS.replace(FFMA, spill))
    assert len(complaints) == 1
    assert "1 spill instructions in its step loop" in complaints[0]
    assert "forward_kernel" in complaints[0]
    assert len(table) == 3


def test_kernel_that_only_traps_is_named_so() -> None:
    sass = SASS.replace("BAR.SYNC.DEFER_BLOCKING 0x0", "BPT.TRAP 0x1")
    table, complaints = sass_report.report(USAGE, sass)
    assert not complaints
    assert [line.split()[5] for line in table[1:]].count("traps") == 1


def test_report_that_sees_nothing_fails() -> None:
    for usage, sass, message in (
        (USAGE, SASS.replace("BAR.SYNC.DEFER_BLOCKING 0x0", "NOP"), "no loop with a barrier"),
        ("", "", "no kernel was found"),
        (USAGE.replace("9pointwise", "9point_ise"), SASS, "says nothing of its registers"),
    ):
        _, complaints = sass_report.report(usage, sass)
        assert len([c for c in complaints if message in c]) == 1, message
