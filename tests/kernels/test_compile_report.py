"""What the selection table chooses, compiled for two chips that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton", reason="the kernels are compiled by triton")

import torch

from fastclip_kernels.compile_report.build import Built
from fastclip_kernels.compile_report.report import broken
from fastclip_kernels.compile_report.sass import Instruction, read, work_of
from fastclip_kernels.compile_report.variants import Variant
from fastclip_kernels.loss.triton_table import launch_for

# name of a pipe's work, the opcode as the disassembler prints it, its operands, lanes or bytes of a warp
OPCODES = [
    ("alu", "FMNMX", "R1, R2, R3, !PT", 32),
    ("fma", "FFMA.FTZ", "R1, R2, R3, R4", 32),
    ("imad", "IMAD.MOV.U32", "R1, RZ, RZ, R2", 32),
    ("mufu", "MUFU.EX2", "R1, R2", 32),
    ("shared", "LDSM.16.M88.4", "R1, [R2]", 512),
    ("shared", "LDS.64", "R1, [R2]", 256),
    ("copies", "LDGSTS.E.BYPASS.128", "[R1], desc[UR4][R2.64]", 512),
    ("stores", "STG.E.U16", "desc[UR4][R2.64], R1", 64),
    ("tensor_flops", "HMMA.16816.F32.BF16", "R4, R68.reuse, R2, R4", 2 * 16 * 8 * 16),
    # a warp's quarter of what four warps do; both factors from shared memory, or one from registers
    ("tensor_flops", "HGMMA.64x128x16.F32", "R88, gdesc[UR12], R88", 2 * 64 * 128 * 16 / 4),
    ("shared", "HGMMA.64x128x16.F32", "R88, gdesc[UR12], R88", 2 * 16 * (64 + 128) / 4),
    ("shared", "HGMMA.64x128x16.F32", "R88, R4, gdesc[UR12], R88", 2 * 16 * 128 / 4),
]

LISTING = """
        /*0000*/                   S2R R1, SR_TID.X ;
        /*0010*/              @!P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0020*/                   FADD R2, R2, R3 ;
        /*0030*/              @!P1 BRA `(.L_x_1) ;
.L_x_0:
        /*0040*/               @P2 BRA `(.L_x_2) ;
.L_x_3:
        /*0050*/                   LDL R7, [R1] ;
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   FMUL R2, R2, R3 ;
        /*0080*/                   BRA `(.L_x_3) ;
.L_x_4:
        /*0090*/                   BRA `(.L_x_4);
"""


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status and output, in a process that compiles: a test beside this one may interpret."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "fastclip_kernels.compile_report", "--json", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def chosen() -> tuple[int, dict[str, Any]]:
    return run("--arch", "sm_80", "--arch", "sm_90")


def test_what_the_table_chooses_meets_every_bar(chosen: tuple[int, dict[str, Any]]) -> None:
    status, report = chosen
    assert report["failures"] == []
    assert status == 0


def test_the_report_is_not_empty(chosen: tuple[int, dict[str, Any]]) -> None:
    """Six kernels in three dtypes on two chips, and two for each patch size; no half-precision one
    without tensor cores.
    """
    variants = chosen[1]["variants"]
    assert len(variants) == 2 * (3 * 6 + 3 * 2)
    half = [v for v in variants if " fp32 " not in v["variant"]]
    assert len(half) == 2 * (2 * 6 + 3 * 2)
    assert all(v["spills"] == 0 and v["tensor_instructions"] > 0 for v in half)
    limit = {"sm_80": 163 << 10, "sm_90": 227 << 10}
    assert all(v["shared_bytes"] <= limit[v["arch"]] and v["resident_blocks"] > 0 for v in variants)
    assert all(v["instructions"]["EXIT"] > 0 for v in variants)
    pointwise = chosen[1]["pointwise"]
    assert len(pointwise) == 2 * 3 * 3  # kernels of `pointwise`
    assert all(kernel["spills"] == 0 and kernel["registers"] <= 96 for kernel in pointwise)


def test_modelled_times(chosen: tuple[int, dict[str, Any]]) -> None:
    report = chosen[1]
    named = [p for p in report["public"] if p["chip_named"]]
    assert named
    assert all(abs(p["ratio"] - 1) <= 0.25 for p in named)
    assert len(report["losses"]) == 4
    # at most the bar; and nothing is faster than its matrix products
    assert all(1 < loss["ratio"] <= 1.5 for loss in report["losses"])


def test_a_tile_that_does_not_fit_is_reported() -> None:
    tile = ("--launch", "128,256,64,4,3", "--only", "sums of rows")
    status, report = run("--arch", "sm_80", *tile)
    assert status == 1
    assert len(report["failures"]) == len(report["variants"]) == 1
    assert "local loads and stores" in report["failures"][0]


@pytest.mark.slow
def test_every_variant_that_can_be_chosen() -> None:
    status, report = run("--all")
    assert report["failures"] == []
    assert status == 0


@pytest.mark.parametrize(("pipe", "opcode", "operands", "amount"), OPCODES)
def test_work_of_an_instruction(pipe: str, opcode: str, operands: str, amount: float) -> None:
    work = work_of(Instruction(opcode, operands))
    assert getattr(work, pipe) == amount
    assert work.issue == 1


def test_a_loop_is_told_from_code_that_was_put_at_the_end() -> None:
    code = read(LISTING)
    assert code.count("LDL", "STL") == 1
    assert (code.inside.issue, code.inside.fma) == (2, 32)
    assert (code.outside.issue, code.outside.fma) == (8, 32)
    assert (code.dynamic(10).issue, code.dynamic(10).fma) == (28, 352)


@pytest.mark.parametrize(("shared", "message"), [(0, "without tensor cores"), (200_000, "shared")])
def test_what_no_launch_here_breaks(shared: int, message: str) -> None:
    launch = launch_for(torch.float16, 512, kernel="sums", keys=512, capability=80)
    products = "        /*0000*/ HMMA.16816.F32 R4, R8, R2, R4 ;\n" if shared else ""
    built = Built(registers=32, shared=shared, warps=4, code=read(products))
    lines = list(broken(Variant("sums of rows", torch.float16, launch, "sm_80"), built))
    assert len(lines) == 1
    assert message in lines[0]
