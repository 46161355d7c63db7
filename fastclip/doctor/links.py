"""What joins GPUs and machines: NVLink, PCIe, InfiniBand."""

from __future__ import annotations

import re

from fastclip.doctor.finding import Finding
from fastclip.doctor.machine import Case, Driver

# nvidia-smi's words for a pair of GPUs, fastest first; NV# is # NVLinks.
_BY_PCIE = ("PIX", "PXB", "PHB", "NODE", "SYS")


def check(case: Case) -> list[Finding]:
    return [_gpus(case), _network(case)]


def pairs(topology: str) -> dict[tuple[str, str], str]:
    """(GPU0, GPU1) -> NV12, PHB, SYS, ... from the table of `nvidia-smi topo -m`."""
    rows = [[cell.strip() for cell in line.split("\t")] for line in topology.splitlines()]
    if not rows:
        return {}
    columns = [cell for cell in rows[0] if cell]
    found = {}
    for first, *cells in rows[1:]:
        for second, link in zip(columns, cells, strict=False):
            if _is_gpu(first) and _is_gpu(second) and first < second:
                found[first, second] = link
    return found


def _is_gpu(name: str) -> bool:
    return re.fullmatch(r"GPU\d+", name) is not None


def _gpus(case: Case) -> Finding:
    driver = case.machine.driver
    count = len(driver.gpus) if isinstance(driver, Driver) else 0
    if not isinstance(driver, Driver) or count < 2:
        return Finding("between gpus", "ok", f"{count or 'no'} GPU{'' if count == 1 else 's'}")
    links = pairs(driver.topology)
    if not links:
        return Finding("between gpus", "ok", f"{count} GPUs; nvidia-smi topo -m tells no links")
    kinds = sorted(set(links.values()), key=_rank)
    if _rank(kinds[-1]) == 0:
        return Finding("between gpus", "ok", f"{count} GPUs, all by NVLink ({', '.join(kinds)})")
    pair = next(pair for pair, link in links.items() if link == kinds[-1])
    return Finding(
        "between gpus",
        "slower",
        f"{count} GPUs; {pair[0]} and {pair[1]} by {kinds[-1]}, not NVLink",
        "gradients go over PCIe: --allreduce-dtype bf16 halves them (not exact), a larger --batch-size or "
        "--accum-freq sends them less often",
    )


def _rank(link: str) -> int:
    """0 for NVLink, and higher the slower."""
    if link.startswith("NV"):
        return 0
    return 1 + (_BY_PCIE.index(link) if link in _BY_PCIE else len(_BY_PCIE))


def _network(case: Case) -> Finding:
    ports = case.machine.ports
    machines = machines_of_run(case)
    across = f"this run spans {machines} machines" if machines > 1 else "one machine needs none"
    if not ports:
        if machines > 1:
            return Finding(
                "infiniband",
                "missing",
                f"none seen, and {across}",
                "in a container hand /dev/infiniband in; without it NCCL sends through TCP sockets",
            )
        return Finding("infiniband", "ok", f"none seen; {across}")
    up = [f"{port.name} {port.layer} {port.rate}".strip() for port in ports if port.active]
    down = [port.name for port in ports if not port.active]
    if not up:
        return Finding(
            "infiniband",
            "broken",
            f"no port is up ({', '.join(down)})",
            "ibstat tells why" if machines > 1 else "",
        )
    lost = f"; down: {', '.join(down)}" if down else ""
    return Finding("infiniband", "ok", f"{', '.join(up)}{lost}")


def machines_of_run(case: Case) -> int:
    """As the launcher says; 1 where none does."""
    environment = case.machine.environment
    for name in ("SLURM_NNODES", "SLURM_JOB_NUM_NODES", "GROUP_WORLD_SIZE"):
        if environment.get(name, "").isdigit():
            return max(1, int(environment[name]))
    return 1
