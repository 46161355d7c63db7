"""Is the trainers' own forward and backward right? Against OpenCLIP's model in float64 with the same weights."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from bench.correctness import Results, require_right, wrongs
from bench.resident_step import Resident, our_resident, reference_resident

# In fp32, of each parameter by itself: far below a factor of 1.01, above what TF32 leaves of a small gradient.
EACH = 2e-3
# At the precision that is timed, of all parameters together: features rounded to bf16 move logits of a few pairs by
# a percent, one way or the other, so this finds what is grossly wrong there and nowhere else.
TOGETHER = 0.03


def model_results(resident: Resident) -> dict[str, Tensor]:
    """Features, loss, and the gradients of all parameters by their names."""
    named = {n: p for n, p in resident.model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        features = {
            "image features": resident.image_features(),
            "text features": resident.text_features(),
        }
    loss = resident.total_loss()
    gradients = torch.autograd.grad(loss, list(named.values()))
    found = {f"d {name}": g for name, g in zip(named, gradients, strict=True)}
    return {**features, "loss": loss.detach(), **found}


def together(results: Results) -> dict[str, Tensor]:
    """The gradients as one vector."""
    gradients = [results[name].flatten().double() for name in sorted(results) if name[:2] == "d "]
    return {"gradients": torch.cat(gradients), "loss": results["loss"]}


def check_model(
    flags: list[str],  # of the run that will be timed, without precision
    precision: str,
    images: Tensor,  # uint8 (B, H, W, 3), a few
    texts: Tensor,  # int64 (B, L)
) -> None:
    """WrongResult where a feature or a gradient of ours is wrong, by its name."""
    torch.manual_seed(0)
    exact = [*flags, "--precision", "fp32"]
    reference = reference_resident(exact, images, texts)
    ours = our_resident(exact, images, texts)
    ours.model.load_state_dict(reference.model.state_dict())
    # checkpointed blocks re-run in backward with the dtype of the weights, so a copy of its own
    wide = replace(
        reference, model=copy.deepcopy(reference.model).double(), images=reference.images.double()
    )
    truth = model_results(wide)
    yardstick = model_results(reference)
    require_right(
        "model in fp32", wrongs(model_results(ours), truth, yardstick, EACH, _floors(truth))
    )
    if precision == "fp32":
        return
    timed = [*flags, "--precision", precision]
    theirs, own = reference_resident(timed, images, texts), our_resident(timed, images, texts)
    for each in (theirs, own):
        each.model.load_state_dict(reference.model.state_dict())
    results, yardstick = together(model_results(own)), together(model_results(theirs))
    found = wrongs(results, together(truth), yardstick, TOGETHER, scale_allowance=TOGETHER)
    require_right(f"model in {precision}", found)


def _floors(truth: Results) -> dict[str, float]:
    """A gradient that is zero but for rounding (of the keys' biases, of unused rows) is held to the others' size."""
    largest = max(float(value.norm()) for name, value in truth.items() if name[:2] == "d ")
    return {name: 1e-5 * largest for name in truth if name[:2] == "d "}
