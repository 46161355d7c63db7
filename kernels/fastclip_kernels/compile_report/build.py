"""Compiles a Triton kernel for a chip that need not be there, and reads the result."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .sass import Code, read

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Argument(NamedTuple):
    """How Triton specialises an argument at run time, as it would see it there."""

    type: str  # "*bf16", "i32", "fp32"; "constexpr" with `value`
    divisible: bool = False  # by 16; a pointer: aligned to 16 bytes
    value: Any = None


class Built(NamedTuple):
    registers: int  # per thread
    shared: int  # bytes per block
    warps: int
    code: Code

    @property
    def spills(self) -> int:
        """Instructions that move registers to and from local memory, static."""
        return self.code.count("LDL", "STL")

    @property
    def products(self) -> int:
        """Tensor-core instructions, static."""
        return self.code.count("HMMA", "HGMMA")


def compile_kernel(
    kernel: Any, arguments: Mapping[str, Argument], capability: int, warps: int, stages: int
) -> Built:
    source = ASTSource(
        kernel,
        {name: argument.type for name, argument in arguments.items()},
        {name: a.value for name, a in arguments.items() if a.type == "constexpr"},
        {
            (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
            for name, argument in arguments.items()
            if argument.divisible
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        cache = os.environ.get("TRITON_CACHE_DIR")
        os.environ["TRITON_CACHE_DIR"] = folder  # nothing is left on the user's disk
        try:
            compiled = triton.compile(
                source,
                target=GPUTarget("cuda", capability, 32),
                options={"num_warps": warps, "num_stages": stages},
            )
        finally:
            if cache is None:
                del os.environ["TRITON_CACHE_DIR"]
            else:
                os.environ["TRITON_CACHE_DIR"] = cache
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _run("cuobjdump", "-res-usage", str(cubin))
        listing = _run("nvdisasm", "-c", str(cubin))
    registers = re.search(r"REG:(\d+)", usage)
    if registers is None:
        raise RuntimeError(f"cuobjdump -res-usage names no registers: {usage!r}")
    return Built(int(registers[1]), compiled.metadata.shared, warps, read(listing))


@functools.cache
def _tool(name: str) -> str:
    path = _TOOLS / name
    if not path.exists():
        raise FileNotFoundError(f"{path}: this triton comes without {name}, which reads cubins")
    return str(path)


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([_tool(tool), *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
