"""torch, triton and CUDA: do they belong together, and to the driver?"""

from __future__ import annotations

from packaging.requirements import Requirement

from fastclip.doctor.finding import Finding
from fastclip.doctor.machine import Case, Driver, release
from fastclip.errors import ExitCode

OLDEST_TORCH = (2, 9)


def check(case: Case) -> list[Finding]:
    return [_torch(case), _triton(case)]


def _torch(case: Case) -> Finding:
    torch, driver = case.machine.torch, case.machine.driver
    built = "for CPUs" if torch.cuda is None else f"for CUDA {'.'.join(map(str, torch.cuda))}"
    if torch.hip is not None:
        built = f"for ROCm {torch.hip}"
    found = f"{torch.version}, built {built}"
    failing = ExitCode.ENVIRONMENT if case.uses_gpu else ExitCode.DONE
    if release(torch.version) < OLDEST_TORCH:
        return Finding(
            "torch", "broken", found, "fastclip needs torch 2.9 or newer", ExitCode.ENVIRONMENT
        )
    if torch.why_no_gpu.startswith("torch cannot be asked"):
        return Finding(
            "torch", "broken", torch.why_no_gpu, "install torch anew", ExitCode.ENVIRONMENT
        )
    if not isinstance(driver, Driver) or torch.hip is not None:
        return Finding("torch", "ok", found)
    index = "pip install torch --index-url https://download.pytorch.org/whl/cu" + (
        "130" if driver.cuda is None or driver.cuda >= (13,) else "126"
    )
    if torch.cuda is None:
        return Finding("torch", "broken", f"{found}, and this machine has GPUs", index, failing)
    if driver.cuda is not None and torch.cuda[:1] > driver.cuda[:1]:
        return Finding(
            "torch",
            "broken",
            f"{found}; driver {driver.version} runs CUDA up to {'.'.join(map(str, driver.cuda))}",
            f"a newer driver, or: {index}",
            failing,
        )
    return Finding("torch", "ok", found)


def _triton(case: Case) -> Finding:
    machine = case.machine
    installed = machine.distributions.get("triton")
    outcome = machine.imports.get("triton")
    if outcome is None or installed is None:
        if not case.uses_gpu:
            return Finding("triton", "ok", "not installed; no GPU would use it")
        return Finding("triton", "missing", "not installed", "pip install triton")
    if outcome.problem is not None:
        return Finding(
            "triton",
            "broken",
            f"{installed}: {outcome.problem}",
            "pip install --force-reinstall triton, in the version that torch asks for",
            ExitCode.ENVIRONMENT if case.uses_gpu else ExitCode.DONE,
        )
    wanted = _wanted(machine.torch_requires)
    if wanted is not None and not wanted.specifier.contains(installed, prereleases=True):
        asked = f"triton{wanted.specifier}"
        return Finding(
            "triton",
            "broken",
            f"{installed}, and torch {machine.torch.version} asks for {asked}",
            f"pip install '{asked}'",
        )
    return Finding("triton", "ok", f"{installed}, as torch asks for" if wanted else installed)


def _wanted(requirements: tuple[str, ...]) -> Requirement | None:
    """torch's own requirement of triton; None where it has none."""
    parsed = map(Requirement, requirements)
    return next((requirement for requirement in parsed if requirement.name == "triton"), None)
