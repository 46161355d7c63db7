"""CPUs: enough of them for loaders, bound as they should be, threads counted."""

from __future__ import annotations

from fastclip.doctor.finding import Finding
from fastclip.doctor.machine import Case

_LAUNCHED = ("LOCAL_RANK", "SLURM_PROCID")  # set where this process is one rank of a run


def check(case: Case) -> list[Finding]:
    return [_enough(case), _threads(case), _numa(case)]


def _cpus(case: Case) -> float:
    """CPUs' worth of time that this process may use."""
    quota = case.machine.cpu_quota
    return min(len(case.machine.cpus), quota) if quota is not None else len(case.machine.cpus)


def _is_a_rank(case: Case) -> bool:
    return any(name in case.machine.environment for name in _LAUNCHED)


def _enough(case: Case) -> Finding:
    machine, workers = case.machine, case.config.data.workers
    may = _cpus(case)
    ranks = 1 if _is_a_rank(case) and len(machine.cpus) < machine.cpu_count else case.local_ranks
    need = ranks * (workers + 1)
    found = f"may use {may:g} of {machine.cpu_count}; {ranks} x ({workers} loaders + 1) want {need}"
    if may < need:
        bound = len(machine.cpus) < machine.cpu_count
        return Finding(
            "cpus",
            "slower",
            found,
            f"srun --cpus-per-task={workers + 1}, and --cpu-bind=cores or none; or fewer --workers"
            if bound
            else "fewer --workers, or more CPUs",
        )
    return Finding("cpus", "ok", found)


def _threads(case: Case) -> Finding:
    name, environment = "OMP_NUM_THREADS", case.machine.environment
    text = environment.get(name)
    share = max(1, int(_cpus(case) // case.local_ranks))
    if text is None:
        by_slurm = "SLURM_JOB_ID" in environment and "TORCHELASTIC_RUN_ID" not in environment
        if case.local_ranks == 1 or not by_slurm:
            return Finding(name, "ok", "unset; torchrun sets 1 for each of several processes")
        return Finding(
            name,
            "slower",
            f"unset; under srun each of {case.local_ranks} processes starts {case.machine.cpu_count} threads",
            f"export OMP_NUM_THREADS={share} (no need under torchrun, which sets 1)",
        )
    threads = int(text) if text.isdigit() else 0
    if threads < 1:
        return Finding(name, "broken", f"{text!r} is no number", f"export OMP_NUM_THREADS={share}")
    if not case.uses_gpu and threads < share:
        return Finding(
            name,
            "slower",
            f"{text}, and this run computes on {share} CPUs",
            f"export OMP_NUM_THREADS={share}",
        )
    if threads > share and case.local_ranks > 1:
        return Finding(
            name,
            "slower",
            f"{text} threads for each of {case.local_ranks} processes, on {_cpus(case):g} CPUs",
            f"export OMP_NUM_THREADS={share}",
        )
    return Finding(name, "ok", text)


def _numa(case: Case) -> Finding:
    nodes, cpus = case.machine.numa, case.machine.cpus
    if len(nodes) < 2:
        return Finding("numa", "ok", "one node")
    used = [i for i, node in enumerate(nodes) if node & cpus]
    if len(used) == 1:
        return Finding("numa", "ok", f"bound to node {used[0]} of {len(nodes)}")
    if not case.uses_gpu or not _is_a_rank(case):
        return Finding("numa", "ok", f"{len(nodes)} nodes; bind each rank to its GPU's node")
    return Finding(
        "numa",
        "slower",
        f"this rank may run on {len(used)} of {len(nodes)} nodes",
        "srun --cpu-bind=cores --gpu-bind=closest, or torchrun --numa-binding=node: memory near its GPU",
    )
