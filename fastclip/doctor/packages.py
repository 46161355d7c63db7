"""Optional packages: the right one of its name, the right build, and one that can be imported."""

from __future__ import annotations

import re

from fastclip.data.decode_dali import INSTALL as INSTALL_DALI
from fastclip.doctor.finding import Finding, Verdict
from fastclip.doctor.machine import Case, Driver, Import
from fastclip.errors import ExitCode

_HOPPER = 9
_APEX = "pip install -v --no-build-isolation git+https://github.com/NVIDIA/apex"
_DALI_BUILD = re.compile(r"nvidia-dali(?:-nightly|-weekly)?-cuda(\d+)")


def check(case: Case) -> list[Finding]:
    return [
        _dali(case),
        _flash_attn(case, "flash-attn 2", "flash_attn", "flash-attn-2", hopper_only=False),
        _flash_attn(case, "flash-attn 3", "flash_attn_interface", "flash-attn-3", hopper_only=True),
        _apex(case),
        _open_clip(case),
    ]


def _dali(case: Case) -> Finding:
    decoder = case.config.data.decoder
    named = decoder == "dali" and case.config.trains
    failing = ExitCode.ENVIRONMENT if named else ExitCode.DONE
    installed = case.machine.distributions
    builds = {name: int(m[1]) // 10 for name in installed if (m := _DALI_BUILD.fullmatch(name))}
    outcome = case.machine.imports.get("nvidia.dali")
    if not builds:
        if outcome is not None or "nvidia-dali" in installed:
            return Finding(
                "dali",
                "broken",
                "PyPI's nvidia-dali, which is not DALI",
                f"pip uninstall nvidia-dali; {INSTALL_DALI}",
                failing,
            )
        return Finding("dali", "missing", "not installed; Pillow decodes", INSTALL_DALI, failing)
    listed = ", ".join(f"{name} {installed[name]}" for name in builds)
    if len(builds) > 1:
        return Finding(
            "dali", "broken", f"{listed}: one overwrites the other", f"keep one: {INSTALL_DALI}"
        )
    ((name, cuda),) = builds.items()
    driver = case.machine.driver
    known = driver.cuda if isinstance(driver, Driver) else None
    if known is not None and known[0] < cuda:
        on_gpu = case.uses_gpu and decoder != "pillow" and case.config.trains
        other = "fastclip[dali-cuda12]"
        remedy = (
            f"pip uninstall {name}; pip install '{other}'" if known[0] == 12 else "a newer driver"
        )
        return Finding(
            "dali",
            "broken",
            f"{listed} is for CUDA {cuda}; this driver runs CUDA up to {'.'.join(map(str, known))}",
            f"{remedy}; or --decoder pillow",
            ExitCode.ENVIRONMENT if on_gpu else ExitCode.DONE,
        )
    if outcome is None or outcome.problem is not None or outcome.lacks:
        why = "its files are gone" if outcome is None else outcome.problem or "it has no pipelines"
        deadly = outcome is not None and outcome.fatal and decoder != "pillow"
        return Finding(
            "dali",
            "broken",
            f"{listed}: {why}",
            f"pip uninstall {name}; {INSTALL_DALI}",
            ExitCode.ENVIRONMENT if deadly and case.config.trains else failing,
        )
    return Finding("dali", "ok", f"{listed}, for CUDA {cuda}")


def _flash_attn(case: Case, label: str, package: str, flag: str, *, hopper_only: bool) -> Finding:
    """How far it is asked for is the attention's own line; here only whether it could be."""
    outcome = case.machine.imports.get(package)
    failing = ExitCode.ENVIRONMENT if case.config.model.attention == flag else ExitCode.DONE
    if outcome is None:
        hopper = any(gpu.capability[0] == _HOPPER for gpu in case.machine.torch.gpus)
        if hopper_only and hopper:
            return Finding(
                label,
                "missing",
                "not installed",
                "from the folder `hopper` of https://github.com/Dao-AILab/flash-attention; auto takes it",
                failing,
            )
        advice = "drop --attention, or pip install 'fastclip[flash]'" if failing else ""
        verdict: Verdict = "missing" if failing else "ok"
        return Finding(
            label, verdict, "not installed; torch has flash attention of its own", advice, failing
        )
    if outcome.problem is not None:
        return Finding(
            label,
            "broken",
            f"installed, and {_how_it_fails(outcome)}",
            f"pip uninstall {package.replace('_interface', '').replace('_', '-')}, or build it for this torch",
            failing,
        )
    if outcome.lacks:
        return Finding(
            label,
            "broken",
            f"{package} {outcome.version} has no {outcome.lacks[0]}: too old, or another package",
            "pip install 'fastclip[flash]'",
            failing,
        )
    return Finding(label, "ok", outcome.version or "installed")


def _apex(case: Case) -> Finding:
    failing = ExitCode.ENVIRONMENT if case.config.optim.optimizer_impl == "apex" else ExitCode.DONE
    outcome = case.machine.imports.get("apex")
    if outcome is None:
        if failing:
            return Finding("apex", "missing", "not installed", _APEX, failing)
        return Finding("apex", "ok", "not installed; torch has a fused AdamW of its own")
    if "optimizers" not in outcome.folder:
        return Finding(
            "apex",
            "broken",
            "another project of that name, not NVIDIA's apex",
            f"pip uninstall apex; {_APEX}",
            failing,
        )
    if outcome.problem is not None or outcome.lacks:
        why = _how_it_fails(outcome) if outcome.problem else "it has no FusedAdam"
        return Finding("apex", "broken", f"NVIDIA's, and {why}", f"build it anew: {_APEX}", failing)
    return Finding("apex", "ok", "NVIDIA's, with FusedAdam")


def _how_it_fails(outcome: Import) -> str:
    return f"importing it fails: {outcome.problem}"


def _open_clip(case: Case) -> Finding:
    installed = case.machine.distributions.get("open-clip-torch")
    if installed is None:
        return Finding(
            "open_clip", "ok", "not installed; needed by models that are not native here"
        )
    return Finding("open_clip", "ok", installed)
