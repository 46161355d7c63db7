"""The scaling model by hand: each assumption that scaling.py writes down, with numbers for doing in the head."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastclip.plan.figure import Figure
from fastclip.plan.rates import Rates
from fastclip.plan.scaling import Work, at_both_ends
from fastclip.plan.traffic import BUCKET_BYTES, Transfer

SECOND = 1e12  # of products


def exactly(value: float) -> Figure:
    return Figure.exactly(value, "given")


RATES = Rates(
    products=exactly(SECOND),
    attention=exactly(SECOND / 2),
    passes=exactly(1e9),
    update=exactly(1e9),
    allreduce=exactly(1e9),
    per_operation=exactly(1e-3),
    per_collective=exactly(0.0),
    loader=None,
    asynchronous=True,
)
# 3 s of products, 2 s of attention, 1 s of passes, half a second of update
WORK = Work(
    products=3 * SECOND,
    attention=SECOND,
    passes=1e9,
    update=5e8,
    operations=100,
    samples=10,
    recomputes_all=False,
    ranks=1,
    gradients=0,
    transfers=[],
)


def across(ranks: int, count: int) -> Work:
    """With `count` bytes of gradients to all-reduce."""
    gradients = Transfer(what="gradients", collective="all-reduce", bytes=count, beside="backward")
    return replace(WORK, ranks=ranks, gradients=count, transfers=[gradients])


def test_compute_adds_up() -> None:
    fast, slow = at_both_ends(WORK, RATES)
    assert fast == slow
    assert fast.step == pytest.approx(6.5)
    assert fast.limit == "compute"


def test_backward_hides_an_all_reduce_but_for_its_last_bucket() -> None:
    count = 2 * 10**9  # 2 · 3/4 · 2 GB on 4 ranks: 3 s, less than the 4 s of backward
    fast, _ = at_both_ends(across(4, count), RATES)
    assert fast.gradients == pytest.approx(3)
    assert fast.waits_for_gradients == pytest.approx(3 * BUCKET_BYTES / count)
    assert fast.step == pytest.approx(6.5 + 3 * BUCKET_BYTES / count)


def test_what_is_longer_than_backward_is_waited_for() -> None:
    fast, _ = at_both_ends(across(4, 8 * 10**9), RATES)  # 12 s
    assert fast.waits_for_gradients == pytest.approx(12 - 4)
    assert fast.limit == "all-reduce"
    full, _ = at_both_ends(replace(across(4, 8 * 10**9), recomputes_all=True), RATES)
    assert full.waits_for_gradients == pytest.approx(12 - 4.5)


def test_a_cpu_does_one_thing_after_the_other() -> None:
    there, _ = at_both_ends(across(4, 2 * 10**9), replace(RATES, asynchronous=False))
    assert there.step == pytest.approx(6.5 + 3 + 100 * 1e-3)


def test_the_host_and_the_loader_bound_a_step() -> None:
    slow_host, _ = at_both_ends(WORK, replace(RATES, per_operation=exactly(0.1)))
    assert (slow_host.step, slow_host.limit) == (pytest.approx(10), "host")
    slow_loader, _ = at_both_ends(WORK, replace(RATES, loader=exactly(0.5)))
    assert (slow_loader.step, slow_loader.limit) == (pytest.approx(20), "loader")
    quick_loader, _ = at_both_ends(WORK, replace(RATES, loader=exactly(500)))
    assert quick_loader.step == pytest.approx(6.5)


def test_images_travel_for_free_and_texts_do_not() -> None:
    gathers = [
        Transfer(what=w, collective="all-gather", bytes=10**8, beside=beside)
        for w, beside in (("image features", "text tower"), ("text features", None))
    ]
    work = replace(WORK, ranks=5, transfers=gathers)
    rates = replace(RATES, per_collective=exactly(0.25))
    fast, _ = at_both_ends(work, rates)
    assert fast.waits_for_loss == pytest.approx(0.25 + 4 * 0.1)
    there, _ = at_both_ends(work, replace(rates, asynchronous=False))
    assert there.waits_for_loss == pytest.approx(2 * (0.25 + 4 * 0.1))


def test_ranges_give_a_fast_and_a_slow_end() -> None:
    products = Figure(SECOND / 2, 3 * SECOND, "given")
    fast, slow = at_both_ends(WORK, replace(RATES, products=products))
    assert (fast.products, slow.products) == (pytest.approx(1), pytest.approx(6))
    assert slow.step - fast.step == pytest.approx(5)


@pytest.mark.parametrize(
    ("collective", "sent"),
    [
        ("all-reduce", 2 * 7 / 8 * 100),
        ("all-gather", 700),
        ("reduce-scatter", 7 / 8 * 100),
        ("send", 100),
        ("broadcast", 100),
    ],
)
def test_bytes_on_the_wire_of_a_ring(collective: str, sent: float) -> None:
    transfer = Transfer(what="it", collective=collective, bytes=100)  # type: ignore[arg-type]
    assert transfer.sent(8) == pytest.approx(sent)
