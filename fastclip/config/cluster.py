"""The cluster that `--dry-run` plans a run for."""

from __future__ import annotations

from dataclasses import dataclass

from fastclip.errors import UserError

# More of either is a slip of the finger, not a machine.
MOST_NODES, MOST_GPUS = 100_000, 64


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """None: the flag was left out."""

    dry_run: bool = False
    nodes: int | None = None
    gpus_per_node: int | None = None
    gpu: str | None = None  # a chip's name, and a file of measured rates after a comma

    def __post_init__(self) -> None:
        given = {
            "--nodes": self.nodes,
            "--gpus-per-node": self.gpus_per_node,
            "--gpu": self.gpu,
        }
        idle = [flag for flag, value in given.items() if value is not None]
        if idle and not self.dry_run:
            raise UserError(
                f"{', '.join(idle)}: only --dry-run takes a cluster that is not there; add it, or drop the flag"
            )
        problems = [
            f"{flag} {count}: must be from 1 to {most:,}"
            for flag, count, most in (
                ("--nodes", self.nodes, MOST_NODES),
                ("--gpus-per-node", self.gpus_per_node, MOST_GPUS),
            )
            if count is not None and not 1 <= count <= most
        ]
        if problems:
            raise UserError("\n".join(problems))

    @property
    def ranks_per_node(self) -> int:
        return self.gpus_per_node or 1

    @property
    def ranks(self) -> int:
        """One process for each GPU."""
        return (self.nodes or 1) * self.ranks_per_node
