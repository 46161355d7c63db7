"""What one rank hands to the process group in a step after the first: every collective, with its bytes.

Formulas, not a count: tests hold each to what passes through a real group. Bytes are those of this rank's input.
On the wire, per rank and by a ring (Thakur, Rabenseifner and Gropp 2005), W ranks and n bytes: an all-reduce sends
2 (W - 1)/W n, an all-gather (W - 1) n, a reduce-scatter (W - 1)/W n, the others n.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastclip.config.train_config import DistributedConfig, LossConfig
from fastclip.plan.counted_step import CountedStep, Features
from fastclip_kernels.loss.clip import RING_BYTES

Collective = Literal["all-reduce", "all-gather", "reduce-scatter", "send", "broadcast", "reduce"]

Beside = Literal["backward", "text tower"]

BUCKET_BYTES = 25 << 20  # DDP's default
_FLOAT = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    what: str
    collective: Collective
    bytes: int  # this rank's input, of all calls
    calls: int = 1
    # gradients leave during backward, images while the text tower runs
    beside: Beside | None = None

    def sent(self, ranks: int) -> float:
        """Bytes that this rank puts on the wire."""
        share = {
            "all-reduce": 2 * (ranks - 1) / ranks,
            "all-gather": ranks - 1,
            "reduce-scatter": (ranks - 1) / ranks,
        }
        return self.bytes * share.get(self.collective, 1)


def transfers_of(
    step: CountedStep, loss: LossConfig, distributed: DistributedConfig, ranks: int, accum_freq: int
) -> list[Transfer]:
    """Empty for one rank."""
    if ranks == 1:
        return []
    of_loss = _of_siglip if loss.siglip else _of_clip
    gradients = step.gradients // (2 if distributed.allreduce_dtype == "bf16" else 1)
    return [
        *of_loss(step.image, step.text, loss, ranks, accum_freq),
        Transfer(
            what="gradients",
            collective="all-reduce",
            bytes=gradients,
            calls=-(-step.gradients // BUCKET_BYTES),
            beside="backward",
        ),
    ]


def takes_ring(image: Features, ranks: int) -> bool:
    """As the loss decides: gathered images of more than 1 GiB are passed on instead."""
    return ranks * image.bytes > RING_BYTES


def _of_clip(
    image: Features, text: Features, loss: LossConfig, ranks: int, accum_freq: int
) -> list[Transfer]:
    one_sided = loss.local_loss and not loss.gather_with_grad
    in_backward = image.trained or text.trained
    found = []
    if takes_ring(image, ranks):
        rounds = (ranks - 1) * (1 + in_backward)
        both = image.bytes + text.bytes
        found.append(
            Transfer(what="features", collective="send", bytes=rounds * both, calls=rounds)
        )
    else:
        early: Beside | None = "text tower" if accum_freq == 1 else None
        found += [
            Transfer(
                what="image features", collective="all-gather", bytes=image.bytes, beside=early
            ),
            Transfer(what="text features", collective="all-gather", bytes=text.bytes),
        ]
    if not loss.local_loss:
        found.append(Transfer(what="loss", collective="all-reduce", bytes=2 * _FLOAT))
    if in_backward and not one_sided:
        sums = (4 * image.rows + 1) * _FLOAT
        found.append(Transfer(what="sums of softmaxes", collective="all-gather", bytes=sums))
    return found


def _of_siglip(
    image: Features, text: Features, loss: LossConfig, ranks: int, accum_freq: int
) -> list[Transfer]:
    texts = text.rows * text.width * text.dtype.itemsize  # they travel as they come
    ways = 1 + text.trained
    if loss.loss_dist_impl == "gather":
        found = [Transfer(what="text features", collective="all-gather", bytes=texts)]
        if text.trained:
            back = ranks * texts
            found.append(Transfer(what="their gradients", collective="reduce-scatter", bytes=back))
        return found
    if loss.loss_dist_impl == "reduce":
        found = [
            Transfer(what="text features", collective="broadcast", bytes=ranks * texts, calls=ranks)
        ]
        if text.trained:
            found.append(
                Transfer(
                    what="their gradients", collective="reduce", bytes=ranks * texts, calls=ranks
                )
            )
        return found
    sends = (ranks - 1) * ways
    return [
        Transfer(
            what="text features and their gradients" if text.trained else "text features",
            collective="send",
            bytes=sends * texts,
            calls=sends,
        )
    ]
