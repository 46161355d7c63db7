"""Driver and GPUs: there, usable, free?"""

from __future__ import annotations

from fastclip.doctor.finding import Finding
from fastclip.doctor.machine import Case, Driver, DriverGpu, TorchGpu
from fastclip.errors import ExitCode

_TAKEN = 0.9  # of a GPU's memory used by others: nothing of a run fits beside it
_SHARED = 0.02  # of a GPU's memory: more than the driver's own
# With a hardware JPEG decoder that nvJPEG uses, by its documentation: A100 and A30, Hopper, B200.
_JPEG_DECODER = ((8, 0), (9, 0), (10, 0))
_AMPERE = (8, 0)


def check(case: Case) -> list[Finding]:
    driver = case.machine.driver
    findings = [_driver(case)]
    if isinstance(driver, Driver):
        findings += [_occupation(gpu, case) for gpu in driver.gpus]
    findings += [_usable(i, gpu, case) for i, gpu in enumerate(case.machine.torch.gpus)]
    if not case.machine.torch.gpus:
        findings.append(_none(case))
    elif case.has_gpu:
        findings.append(_jpeg(case))
    return findings


def _failing(case: Case) -> ExitCode:
    return ExitCode.ENVIRONMENT if case.uses_gpu else ExitCode.DONE


def _driver(case: Case) -> Finding:
    driver = case.machine.driver
    if isinstance(driver, Driver):
        newest = "" if driver.cuda is None else f", runs CUDA up to {_dotted(driver.cuda)}"
        return Finding("driver", "ok", f"{driver.version}{newest}")
    if case.machine.torch.gpus:
        return Finding("driver", "ok", f"{driver}; torch finds GPUs without it")
    if driver == "there is no nvidia-smi":
        return Finding("driver", "missing", driver, "a login node or a CPU machine needs none")
    return Finding(
        "driver", "broken", driver, "reload the NVIDIA driver, or ask the machine's administrator"
    )


def _occupation(gpu: DriverGpu, case: Case) -> Finding:
    name = f"gpu {gpu.index} in use"
    status = _failing(case) if _is_visible(gpu, case) else ExitCode.DONE
    by = f" by {'; '.join(gpu.processes)}" if gpu.processes else ""
    used = f"{gpu.name}: {gpu.used_mib:,} of {gpu.total_mib:,} MiB in use{by}"
    if gpu.compute_mode == "Prohibited":
        return Finding(
            name,
            "broken",
            f"{gpu.name}: its compute mode is Prohibited",
            f"nvidia-smi -i {gpu.index} -c DEFAULT, as administrator",
            status,
        )
    if gpu.compute_mode == "Exclusive_Process" and gpu.processes and not _torch_can_use_all(case):
        return Finding(
            name,
            "broken",
            f"{gpu.name}: in exclusive mode and taken{by}",
            "end that process, or take another GPU with CUDA_VISIBLE_DEVICES",
            status,
        )
    share = gpu.used_mib / gpu.total_mib if gpu.total_mib else 0.0
    if share > _TAKEN:
        return Finding(
            name,
            "broken",
            used,
            "wait for its user, or take another GPU with CUDA_VISIBLE_DEVICES",
            status,
        )
    if share > _SHARED or gpu.processes:
        return Finding(name, "slower", used, "a GPU shared with others gives a run what they leave")
    if gpu.mig:
        return Finding(
            name,
            "slower",
            f"{used}; cut up by MIG",
            f"a whole GPU: nvidia-smi -i {gpu.index} -mig 0, as administrator",
        )
    return Finding(name, "ok", used)


def _torch_can_use_all(case: Case) -> bool:
    """So also where NVIDIA's MPS holds a GPU in exclusive mode: it lets others in."""
    return case.has_gpu and all(gpu.problem is None for gpu in case.machine.torch.gpus)


def _is_visible(gpu: DriverGpu, case: Case) -> bool:
    chosen = case.machine.environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return True
    words = [word.strip() for word in chosen.split(",") if word.strip()]
    return any(word == str(gpu.index) or gpu.uuid.startswith(word) for word in words)


def _usable(index: int, gpu: TorchGpu, case: Case) -> Finding:
    name, architectures = f"cuda:{index}", case.machine.torch.architectures
    if gpu.problem is not None:
        remedy = "see the lines above; then dmesg | grep -i nvrm"
        if "busy" in gpu.problem:
            remedy = "another process has it: end that, or choose another with CUDA_VISIBLE_DEVICES"
        return Finding(
            name, "broken", f"torch cannot use it: {gpu.problem}", remedy, _failing(case)
        )
    has = _dotted(gpu.capability)
    if case.machine.torch.hip is None and not _is_built_for(gpu.capability, architectures):
        return Finding(
            name,
            "broken",
            f"{gpu.name}, compute capability {has}; this torch is built for {', '.join(architectures)}",
            "install a torch build for it: https://pytorch.org/get-started/locally",
            _failing(case),
        )
    if gpu.capability < _AMPERE:
        return Finding(
            name,
            "slower",
            f"{gpu.name}, compute capability {has}",
            "the Triton kernels and flash attention need 8.0, an A100 or newer",
        )
    return Finding(name, "ok", f"{gpu.name}, compute capability {has}")


def _is_built_for(capability: tuple[int, int], architectures: tuple[str, ...]) -> bool:
    """Code for a chip runs on later ones of its major version; PTX (compute_...) on all later ones."""
    if not architectures:
        return True
    for architecture in architectures:
        kind, _, digits = architecture.partition("_")
        digits = digits.rstrip("af")
        built = (int(digits[:-1]), int(digits[-1])) if digits.isdigit() else (0, 0)
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def _none(case: Case) -> Finding:
    why = case.machine.torch.why_no_gpu or "torch finds none"
    if case.asks_for_gpu and isinstance(case.machine.driver, Driver):
        hidden = case.machine.environment.get("CUDA_VISIBLE_DEVICES")
        remedy = (
            f"CUDA_VISIBLE_DEVICES={hidden!r} hides them: unset it"
            if hidden is not None
            else "a torch whose CUDA fits the driver; see torch below"
        )
        return Finding(
            "cuda", "broken", f"the driver has GPUs and torch none: {why}", remedy, _failing(case)
        )
    if not case.asks_for_gpu:
        return Finding("cuda", "ok", f"no GPU, and --device {case.config.distributed.device}")
    return Finding(
        "cuda", "missing", why, "fastclip train falls back to the CPU here, as OpenCLIP does"
    )


def _jpeg(case: Case) -> Finding:
    name = "jpeg decoder"
    chips = {gpu.capability for gpu in case.machine.torch.gpus if gpu.problem is None}
    if chips <= set(_JPEG_DECODER) and case.machine.torch.hip is None:
        return Finding(name, "ok", "the GPU decodes baseline JPEG in hardware of its own")
    return Finding(
        name,
        "slower",
        "no hardware decoder known: nvJPEG decodes on the CPU and on the cores that train",
        "watch Wait in the log line; more --workers help only as far as there are CPUs",
    )


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
