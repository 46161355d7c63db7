"""Each check against facts made up for it: what is wrong is named, what is right is left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastclip.doctor import cpus, folders, gpus, links, memory, packages, pairing, settings
from fastclip.doctor.finding import Finding, Report
from fastclip.doctor.machine import Built, Case, Driver, Import, Machine, Port, TorchGpu
from fastclip.errors import ExitCode
from fastclip.model.factory import create_model
from tests.doctor.environments import BARE, EVERYTHING, TOPOLOGY, by_name, flags, with_driver_for

Check = Callable[[Case], list[Finding]]


def judged(
    check: Check, machine: Machine, *words: str, built: Built | None = None
) -> dict[str, Finding]:
    return by_name(check(Case(machine, flags(*words), built or Built())))


def with_gpu(machine: Machine, **facts: Any) -> Machine:
    """The first GPU changed."""
    assert isinstance(machine.driver, Driver)
    first, *others = machine.driver.gpus
    return replace(machine, driver=replace(machine.driver, gpus=(replace(first, **facts), *others)))


def with_environment(machine: Machine, **variables: str) -> Machine:
    return replace(machine, environment={**machine.environment, **variables})


@pytest.mark.parametrize(
    ("facts", "variables", "verdict", "status", "says"),
    [
        ({}, {}, "ok", 0, "4 of 81,920 MiB"),
        ({"used_mib": 80000}, {}, "broken", 69, "80,000 of 81,920 MiB in use"),
        ({"used_mib": 80000}, {"CUDA_VISIBLE_DEVICES": "1,2"}, "broken", 0, "80,000"),
        ({"used_mib": 80000}, {"CUDA_VISIBLE_DEVICES": "GPU-0"}, "broken", 69, "80,000"),
        ({"used_mib": 9000, "processes": ("process 7",)}, {}, "slower", 0, "by process 7"),
        ({"compute_mode": "Exclusive_Process"}, {}, "ok", 0, "MiB"),
        (
            {"compute_mode": "Exclusive_Process", "processes": ("process 7",)},
            {},
            "broken",
            69,
            "taken by process 7",
        ),
        ({"compute_mode": "Prohibited"}, {}, "broken", 69, "Prohibited"),
        ({"mig": True}, {}, "slower", 0, "MIG"),
    ],
)
def test_a_gpu_in_use(
    facts: dict[str, Any], variables: dict[str, str], verdict: str, status: int, says: str
) -> None:
    machine = with_environment(with_gpu(EVERYTHING, **facts), **variables)
    busy = TorchGpu(problem="CUDA-capable device(s) is/are busy or unavailable")
    machine = replace(machine, torch=replace(machine.torch, gpus=(busy, *machine.torch.gpus[1:])))
    finding = judged(gpus.check, machine)["gpu 0 in use"]
    assert (finding.verdict, finding.status) == (verdict, status)
    assert says in finding.found
    assert judged(gpus.check, machine, "--device", "cpu")["gpu 0 in use"].status == 0


def test_a_gpu_shared_by_mps() -> None:
    """In exclusive mode, held by NVIDIA's MPS, and torch can use it: so can a run."""
    held = with_gpu(EVERYTHING, compute_mode="Exclusive_Process", processes=("process 7, 30 MiB",))
    finding = judged(gpus.check, held)["gpu 0 in use"]
    assert (finding.verdict, finding.status) == ("slower", 0)


@pytest.mark.parametrize(
    ("gpu", "verdict", "says"),
    [
        (TorchGpu(name="A100", capability=(8, 0)), "ok", "8.0"),
        (TorchGpu(name="L40S", capability=(8, 9)), "ok", "8.9"),  # sm_86 code runs on it
        (TorchGpu(name="T4", capability=(7, 5)), "slower", "7.5"),
        (TorchGpu(name="V100", capability=(7, 0)), "broken", "this torch is built for sm_75"),
        (TorchGpu(name="next", capability=(13, 0)), "broken", "13.0"),
        (TorchGpu(problem="CUDA error: devices are busy or unavailable"), "broken", "busy"),
    ],
)
def test_a_gpu_for_torch(gpu: TorchGpu, verdict: str, says: str) -> None:
    machine = replace(EVERYTHING, torch=replace(EVERYTHING.torch, gpus=(gpu,)))
    finding = judged(gpus.check, machine)["cuda:0"]
    assert finding.verdict == verdict
    assert says in finding.found
    assert finding.status == (69 if verdict == "broken" else 0)


def test_a_driver_without_torch() -> None:
    """GPUs that torch cannot use are not a CPU machine: a run that went to the CPU there would be a mistake."""
    machine = replace(EVERYTHING, torch=replace(BARE.torch))
    assert judged(gpus.check, machine)["cuda"].status == 69
    assert judged(pairing.check, machine)["torch"].status == 69
    hidden = with_environment(machine, CUDA_VISIBLE_DEVICES="")
    assert "CUDA_VISIBLE_DEVICES='' hides them" in judged(gpus.check, hidden)["cuda"].advice
    assert judged(gpus.check, machine, "--device", "cpu")["cuda"].verdict == "ok"


def test_jpeg_decoder() -> None:
    assert judged(gpus.check, EVERYTHING)["jpeg decoder"].verdict == "ok"
    v100 = replace(EVERYTHING.torch, gpus=(TorchGpu(name="L4", capability=(8, 9)),))
    assert judged(gpus.check, replace(EVERYTHING, torch=v100))["jpeg decoder"].verdict == "slower"


def test_links_between_gpus() -> None:
    pairs = links.pairs(TOPOLOGY)
    assert len(pairs) == 6
    assert set(pairs.values()) == {"NV4"}
    slow = TOPOLOGY.replace("NV4", "SYS", 1)
    assert isinstance(EVERYTHING.driver, Driver)
    machine = replace(EVERYTHING, driver=replace(EVERYTHING.driver, topology=slow))
    finding = judged(links.check, machine)["between gpus"]
    assert finding.verdict == "slower"
    assert "GPU0 and GPU1 by SYS" in finding.found


def test_infiniband() -> None:
    two = {"SLURM_NNODES": "2"}
    down = Port(name="mlx5_0:1", active=False, rate="", layer="InfiniBand")
    without = replace(EVERYTHING, ports=())
    for machine, verdict in (
        (without, "ok"),
        (with_environment(without, **two), "missing"),
        (with_environment(EVERYTHING, **two), "ok"),
        (replace(EVERYTHING, ports=(down,)), "broken"),
    ):
        assert judged(links.check, machine)["infiniband"].verdict == verdict


def test_torch_and_its_driver() -> None:
    assert judged(pairing.check, EVERYTHING)["torch"].verdict == "ok"
    older = judged(pairing.check, with_driver_for(EVERYTHING, "550.90.07", (12, 4)))["torch"]
    assert (older.verdict, older.status) == ("broken", 69)
    assert "runs CUDA up to 12.4" in older.found
    assert "cu126" in older.advice
    minor = replace(EVERYTHING, torch=replace(EVERYTHING.torch, cuda=(13, 2)))
    assert judged(pairing.check, minor)["torch"].verdict == "ok"  # newer minor versions run too
    old = replace(EVERYTHING, torch=replace(EVERYTHING.torch, version="2.8.0+cu128"))
    assert judged(pairing.check, old)["torch"].status == 69


@pytest.mark.parametrize(
    ("installed", "verdict"),
    [("3.8.0", "ok"), ("3.8.1", "ok"), ("3.7.0", "broken"), ("3.9.0", "broken"), (None, "missing")],
)
def test_triton(installed: str | None, verdict: str) -> None:
    others = {k: v for k, v in EVERYTHING.distributions.items() if k != "triton"}
    own = {} if installed is None else {"triton": installed}
    machine = replace(EVERYTHING, distributions={**others, **own})
    assert judged(pairing.check, machine)["triton"].verdict == verdict


@pytest.mark.parametrize(
    ("builds", "imported", "driver", "words", "verdict", "status", "says"),
    [
        ({"nvidia-dali-cuda120": "1.5"}, True, (12, 4), (), "ok", 0, "for CUDA 12"),
        ({"nvidia-dali-cuda120": "1.5"}, True, (13, 0), (), "ok", 0, "for CUDA 12"),
        ({"nvidia-dali-cuda120": "1.5"}, True, (11, 8), (), "broken", 69, "up to 11.8"),
        ({"nvidia-dali": "1.0"}, False, (13, 0), (), "broken", 0, "is not DALI"),
        (
            {"nvidia-dali": "1.0"},
            False,
            (13, 0),
            ("--decoder", "dali"),
            "broken",
            69,
            "is not DALI",
        ),
        ({}, False, (13, 0), (), "missing", 0, "Pillow decodes"),
        ({}, False, (13, 0), ("--decoder", "dali"), "missing", 69, "Pillow"),
        (
            {"nvidia-dali-cuda120": "1.5", "nvidia-dali-cuda130": "2.4"},
            True,
            (13, 0),
            (),
            "broken",
            0,
            "overwrites",
        ),
    ],
)
def test_dali(
    builds: dict[str, str],
    imported: bool,
    driver: tuple[int, int],
    words: tuple[str, ...],
    verdict: str,
    status: int,
    says: str,
) -> None:
    machine = replace(
        with_driver_for(EVERYTHING, "1", driver),
        distributions=builds,
        imports={"nvidia.dali": Import()} if imported else {},
    )
    finding = judged(packages.check, machine, *words)["dali"]
    assert (finding.verdict, finding.status) == (verdict, status)
    assert says in finding.found


@pytest.mark.parametrize(
    ("outcome", "verdict", "says"),
    [
        (Import(folder=("optimizers",)), "ok", "NVIDIA's, with FusedAdam"),
        (Import(folder=("optimizers",), lacks=("FusedAdam",)), "broken", "no FusedAdam"),
        (Import(folder=("optimizers",), problem="no amp_C"), "broken", "NVIDIA's, and importing"),
        (Import(folder=("views.py",), problem="no pyramid"), "broken", "not NVIDIA's"),
    ],
)
def test_the_apexes(outcome: Import, verdict: str, says: str) -> None:
    machine = replace(EVERYTHING, imports={"apex": outcome})
    finding = judged(packages.check, machine, "--optimizer-impl", "apex")["apex"]
    assert (finding.verdict, finding.status) == (verdict, 0 if verdict == "ok" else 69)
    assert says in finding.found


@pytest.mark.parametrize(
    ("variables", "name", "verdict", "status"),
    [
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
            "PYTORCH_CUDA_ALLOC_CONF",
            "ok",
            0,
        ),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, "CUDA_LAUNCH_BLOCKING", "slower", 0),
        ({"NCCL_P2P_DISABLE": "1"}, "NCCL_P2P_DISABLE", "slower", 0),
        ({"NCCL_DEBUG": "info"}, "NCCL_DEBUG", "slower", 0),
        ({"NCCL_IB_DISABLE": "1", "SLURM_NNODES": "4"}, "NCCL_IB_DISABLE", "slower", 0),
        ({"NCCL_SOCKET_IFNAME": "bond0"}, "NCCL_SOCKET_IFNAME", "broken", 69),
        ({"NCCL_SOCKET_IFNAME": "=eth"}, "NCCL_SOCKET_IFNAME", "broken", 69),
        ({"NCCL_SOCKET_IFNAME": "^eth,ib,lo"}, "NCCL_SOCKET_IFNAME", "broken", 69),
        ({"NCCL_IB_HCA": "mlx4_0"}, "NCCL_IB_HCA", "broken", 0),
    ],
)
def test_variables(variables: dict[str, str], name: str, verdict: str, status: int) -> None:
    finding = judged(settings.check, with_environment(EVERYTHING, **variables))[name]
    assert (finding.verdict, finding.status) == (verdict, status)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"NCCL_SOCKET_IFNAME": "eth"},
        {"NCCL_SOCKET_IFNAME": "=ib0"},
        {"NCCL_SOCKET_IFNAME": "^lo,docker"},
        {"NCCL_IB_HCA": "mlx5_0:1"},
        {"NCCL_P2P_DISABLE": "0"},
    ],
)
def test_variables_that_are_right(variables: dict[str, str]) -> None:
    found = judged(settings.check, with_environment(EVERYTHING, **variables))
    assert {finding.verdict for finding in found.values()} == {"ok"}


def test_allocator_settings_that_torch_refuses() -> None:
    refusing = replace(EVERYTHING.torch, allocator_problem="Unrecognized key 'expandable'")
    machine = with_environment(
        replace(EVERYTHING, torch=refusing), PYTORCH_ALLOC_CONF="expandable:1"
    )
    finding = judged(settings.check, machine)["PYTORCH_ALLOC_CONF"]
    assert (finding.verdict, finding.status) == ("broken", 69)


def test_shared_memory() -> None:
    """Docker's 64 MB hold no batch of 896 pictures of 256 x 256 (168 MiB of pixels), whatever else is right."""
    model = create_model("ViT-B-32-256", device="meta")
    built = Built(model=model)
    need = memory.shared_bytes(Case(EVERYTHING, flags("--workers", "2"), built))
    assert need == 4 * 2 * 3 * 896 * 256 * 256 * 3
    small = replace(EVERYTHING, shm_free=64 << 20)
    finding = judged(memory.check, small, built=built)["/dev/shm"]
    assert (finding.verdict, finding.status) == ("broken", 69)
    assert "--shm-size=" in finding.advice
    assert judged(memory.check, EVERYTHING, built=built)["/dev/shm"].verdict == "ok"
    assert "/dev/shm" not in judged(memory.check, small, "--workers", "0", built=built)


def test_open_files_and_memory() -> None:
    few = replace(EVERYTHING, open_files=64)
    assert judged(memory.check, few)["open files"].verdict == "broken"
    tight = replace(EVERYTHING, memory_limit=24 << 30)
    assert judged(memory.check, tight)["memory"].verdict == "slower"
    assert (
        judged(memory.check, replace(EVERYTHING, memory_limit=4 << 30))["memory"].verdict
        == "broken"
    )
    assert judged(memory.check, EVERYTHING)["memory"].verdict == "ok"


def test_cpus() -> None:
    assert judged(cpus.check, EVERYTHING)["cpus"].verdict == "ok"  # 64 for 4 x 5
    quota = replace(EVERYTHING, cpu_quota=8.0)
    assert judged(cpus.check, quota)["cpus"].verdict == "slower"
    bound = with_environment(replace(EVERYTHING, cpus=frozenset({3})), SLURM_PROCID="0")
    finding = judged(cpus.check, bound)["cpus"]
    assert finding.verdict == "slower"
    assert "--cpus-per-task=5" in finding.advice
    enough = with_environment(replace(EVERYTHING, cpus=frozenset(range(8))), SLURM_PROCID="0")
    assert judged(cpus.check, enough)["cpus"].verdict == "ok"


@pytest.mark.parametrize(
    ("threads", "words", "verdict"),
    [
        (None, (), "slower"),  # four processes of srun that take 64 each
        (None, ("--device", "cpu"), "ok"),
        ("1", (), "ok"),
        ("16", (), "ok"),
        ("64", (), "slower"),
        ("1", ("--device", "cpu"), "slower"),
        ("many", (), "broken"),
    ],
)
def test_threads(threads: str | None, words: tuple[str, ...], verdict: str) -> None:
    environment = {} if threads is None else {"OMP_NUM_THREADS": threads}
    for launcher in ({"SLURM_JOB_ID": "1"}, {}, {"SLURM_JOB_ID": "1", "TORCHELASTIC_RUN_ID": "2"}):
        machine = replace(EVERYTHING, environment=environment | launcher)
        left_to_torchrun = threads is None and launcher != {"SLURM_JOB_ID": "1"}
        wanted = "ok" if left_to_torchrun else verdict
        assert judged(cpus.check, machine, *words)["OMP_NUM_THREADS"].verdict == wanted


def test_numa() -> None:
    rank = with_environment(EVERYTHING, LOCAL_RANK="0")
    assert judged(cpus.check, EVERYTHING)["numa"].verdict == "ok"
    assert judged(cpus.check, rank)["numa"].verdict == "slower"
    bound = replace(rank, cpus=frozenset(range(32, 40)))
    assert judged(cpus.check, bound)["numa"].found == "bound to node 1 of 2"


def test_logs_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = judged(folders.check, BARE, "--logs", str(tmp_path / "file" / "logs"))["logs"]
    assert (finding.verdict, finding.status) == ("broken", ExitCode.CANNOT_WRITE)
    good = judged(folders.check, BARE, "--logs", str(tmp_path / "new" / "logs"))["logs"]
    assert good.verdict == "ok"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_checkpoints_are_counted() -> None:
    """Four bytes for each weight and two moments, and as many files as are kept."""
    model = create_model("ViT-S-32-alt", device="meta")
    weights = sum(p.numel() for p in model.parameters())
    case = Case(BARE, flags("--epochs", "10", "--save-frequency", "3"), Built(model=model))
    assert folders.checkpoint_bytes(case) == 4 * 3 * weights
    locked = model.visual.conv1.weight.requires_grad_(False).numel()
    assert folders.checkpoint_bytes(case) == 4 * (3 * weights - 2 * locked)  # it has no moments
    for words, count in (
        ((), 4),  # 3, 6, 9, 10
        (("--save-most-recent",), 5),
        (("--delete-previous-checkpoint",), 1),
        (("--keep-last", "2"), 2),
        (("--save-frequency", "0"), 1),
    ):
        given = ("--epochs", "10", "--save-frequency", "3", *words)
        assert folders.checkpoints(Case(BARE, flags(*given))) == count


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built = Built(model=create_model("ViT-S-32-alt", device="meta"))
    size = folders.checkpoint_bytes(Case(BARE, flags(), built))
    assert size is not None
    words = ("--logs", str(tmp_path), "--epochs", "10")
    for free, verdict, status in (
        (size, "broken", ExitCode.CANNOT_WRITE),
        (5 * size, "broken", ExitCode.DONE),
        (11 * size, "ok", ExitCode.DONE),
    ):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr("shutil.disk_usage", lambda path, usage=usage: usage)
        finding = judged(folders.check, BARE, *words, built=built)["logs"]
        assert (finding.verdict, finding.status) == (verdict, status)


@pytest.mark.parametrize(("words", "status"), [((), 69), (("--device", "cpu"), 0)])
def test_a_read_only_cache(words: tuple[str, ...], status: int) -> None:
    """/proc takes no folder, not even from root."""
    machine = with_environment(EVERYTHING, TRITON_CACHE_DIR="/proc/no/cache", HOME="/tmp")
    finding = judged(folders.check, machine, *words)["triton cache"]
    assert (finding.verdict, finding.status) == ("broken", status)
    assert "TRITON_CACHE_DIR" in finding.advice
    compiling = judged(folders.check, machine, "--device", "cpu", "--torchcompile")["triton cache"]
    assert compiling.status == 69


def test_the_status_that_a_report_ends_with() -> None:
    def report(*statuses: int) -> ExitCode:
        findings = [
            Finding(str(i), "broken", "", status=ExitCode(s)) for i, s in enumerate(statuses)
        ]
        return Report({"data": findings}).status

    assert report() == report(0, 0) == 0
    assert report(0, 66, 74) == 66
    assert report(74, 69, 66) == 69
