"""Environment variables that slow a run down or stop it: torch's allocator, CUDA, NCCL."""

from __future__ import annotations

from fastclip.doctor.finding import Finding, Verdict
from fastclip.doctor.links import machines_of_run
from fastclip.doctor.machine import Case
from fastclip.errors import ExitCode

# torch's names, the newer one first: it wins where both are set (torch 2.9 and newer).
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
# variable -> (values that cost something, what they do)
_COSTLY: dict[str, tuple[tuple[str, ...], str]] = {
    "PYTORCH_NO_CUDA_MEMORY_CACHING": (("1",), "every tensor asks the driver for memory and waits"),
    "CUDA_LAUNCH_BLOCKING": (("1",), "the CPU waits for every kernel: for debugging only"),
    "TORCH_DISTRIBUTED_DEBUG": (("DETAIL",), "every collective is checked by another one"),
    "TORCH_NCCL_BLOCKING_WAIT": (("1",), "the CPU waits for every collective"),
    "NCCL_BLOCKING_WAIT": (("1",), "the CPU waits for every collective"),
    "NCCL_DEBUG": (("INFO", "TRACE"), "NCCL writes a line per operation"),
    "NCCL_LAUNCH_MODE": (("GROUP",), "kernels of several GPUs wait for each other"),
}
# variable -> (values, what they do), where GPUs of one machine talk to each other
_COSTLY_BETWEEN_GPUS: dict[str, tuple[tuple[str, ...], str]] = {
    "NCCL_P2P_DISABLE": (("1",), "GPUs exchange through the CPU's memory, not NVLink"),
    "NCCL_P2P_LEVEL": (("LOC",), "GPUs exchange through the CPU's memory, not NVLink"),
    "NCCL_SHM_DISABLE": (("1",), "GPUs without a direct link exchange through network sockets"),
}


def check(case: Case) -> list[Finding]:
    environment = case.machine.environment
    costly = dict(_COSTLY)
    if case.local_ranks > 1:
        costly |= _COSTLY_BETWEEN_GPUS
    findings = [
        Finding(name, "slower", f"{environment[name]}: {effect}", f"unset {name}")
        for name, (values, effect) in costly.items()
        if environment.get(name, "").upper() in values
    ]
    findings = [_allocator(case), *findings, *_nccl(case)]
    if not any(finding.name.startswith(("NCCL", "TORCH_NCCL")) for finding in findings):
        findings.append(
            Finding("NCCL", "ok", "no variable that costs speed or names what is not there")
        )
    return findings


def _allocator(case: Case) -> Finding:
    environment = case.machine.environment
    name = next((name for name in _ALLOCATOR if name in environment), None)
    if name is None:
        return Finding("allocator", "ok", "torch's defaults")
    text = environment[name]
    if case.machine.torch.allocator_problem is not None:
        return Finding(
            name,
            "broken",
            f"{text}: {case.machine.torch.allocator_problem}",
            f"correct it, or unset {name}",
            ExitCode.ENVIRONMENT if case.uses_gpu else ExitCode.DONE,
        )
    if all(name in environment and environment[name] != text for name in _ALLOCATOR):
        return Finding(
            _ALLOCATOR[1], "slower", f"hidden by {name}={text}", f"unset {_ALLOCATOR[1]}"
        )
    return Finding(name, "ok", text)


def _nccl(case: Case) -> list[Finding]:
    environment, machine = case.machine.environment, case.machine
    active = [port for port in machine.ports if port.active]
    findings = []
    if environment.get("NCCL_IB_DISABLE") == "1" and active:
        several = machines_of_run(case) > 1
        verdict: Verdict = "slower" if several else "ok"
        findings.append(
            Finding(
                "NCCL_IB_DISABLE",
                verdict,
                f"1, and {active[0].name} is up ({active[0].rate}): machines talk through TCP sockets",
                "unset NCCL_IB_DISABLE" if several else "",
            )
        )
    adapters = {port.name.partition(":")[0] for port in machine.ports}
    for name, present, what in (
        ("NCCL_SOCKET_IFNAME", set(machine.interfaces), "network interface"),
        ("NCCL_IB_HCA", adapters, "InfiniBand adapter"),
    ):
        text = environment.get(name)
        if text and not _names_any(text, present):
            findings.append(
                Finding(
                    name,
                    "broken",
                    f"{text}: no such {what} here ({', '.join(sorted(present)) or 'none'})",
                    f"correct it, or unset {name}: NCCL finds the way by itself",
                    _failing_with_nccl(case, name),
                )
            )
    return findings


def _failing_with_nccl(case: Case, name: str) -> ExitCode:
    """Without its interface NCCL ends a run of several processes; without its adapter it takes the interface."""
    alone = case.local_ranks == 1 and machines_of_run(case) == 1
    ends = name == "NCCL_SOCKET_IFNAME" and case.uses_gpu and not alone
    return ExitCode.ENVIRONMENT if ends else ExitCode.DONE


def _names_any(text: str, present: set[str]) -> bool:
    """NCCL's form: beginnings of names, `=` for whole names, `^` for all but these, a port after a colon."""
    excluding, exact = text.startswith("^"), text.lstrip("^").startswith("=")
    words = [word.partition(":")[0] for word in text.lstrip("^=").split(",") if word]

    def named(name: str) -> bool:
        return any(name == word if exact else name.startswith(word) for word in words)

    return any(named(name) != excluding for name in present)
