"""The chips that a run can be planned for: data sheets, and what is assumed of the machines around them."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from fastclip.errors import UserError
from fastclip_kernels.compile_report.chips import CHIPS as DOCUMENTED

_A100, _H100 = DOCUMENTED["sm_80"], DOCUMENTED["sm_90"]


class Chip(NamedTuple):
    """Bytes, FLOP/s and bytes/s of one GPU."""

    name: str
    device_name: str  # part of what torch calls it
    memory: int  # as torch reports it: less than the name says, by the driver's and ECC's part
    peak: float  # dense, half precision; half of it in TF32
    hbm: float
    link: float  # all-reduce among the GPUs of a machine, as nccl-tests' bus bandwidth
    port: float  # one network port
    products: tuple[float, float]  # assumed share of `peak` that products of a transformer reach


# Peak and the 40 GB bandwidth: see fastclip_kernels/compile_report/chips.py. A100 80 GB: 2,039 GB/s (NVIDIA A100
# data sheet, 2021). Links: NVLink 3 has 300 GB/s each way, NVLink 4 450; nccl-tests reaches about four fifths.
# Ports: HDR InfiniBand 200 Gb/s beside A100s, NDR 400 Gb/s beside H100s. H100s reach less of their peak: power.
_OF_A100, _OF_H100 = (0.55, 0.8), (0.45, 0.7)
CHIPS = {
    "a100-40g": Chip(
        "A100 SXM 40 GB", "A100", 42_300_000_000, _A100.peak, _A100.hbm, 240e9, 25e9, _OF_A100
    ),
    "a100-80g": Chip(
        "A100 SXM 80 GB", "A100", 84_900_000_000, _A100.peak, 2.039e12, 240e9, 25e9, _OF_A100
    ),
    "h100": Chip(
        "H100 SXM 80 GB", "H100", 84_900_000_000, _H100.peak, _H100.hbm, 360e9, 50e9, _OF_H100
    ),
}
CPU = "cpu"


def find_chip(name: str) -> Chip | None:
    """None for the CPU of this machine. UserError for a name that is not known."""
    if name == CPU:
        return None
    if name not in CHIPS:
        known = [*CHIPS, CPU]
        close = [each for each in known if name and each.startswith(name.lower())]
        close = close or difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.7)
        hint = f"did you mean {' or '.join(close)}?" if close else f"choose {', '.join(known)}"
        raise UserError(f"--gpu {name!r}: no such chip; {hint}")
    return CHIPS[name]
