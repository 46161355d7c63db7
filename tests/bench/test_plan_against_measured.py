"""The dry run's memory is what processes take, to 10 %, on one and two ranks. (Seconds want an idle machine.)"""

from __future__ import annotations

import pytest

from bench.plan_against_measured import CASES, MEMORY_AIM, run_case


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 4])
def test_memory_of_a_step(number: int) -> None:
    found = run_case(CASES[number], 1, number, toy=False)
    told, measured = found["predicted"]["bytes"], found["measured"]["bytes"]
    print(f"{told / 1e6:.0f} MB told, {measured / 1e6:.0f} MB measured")
    assert abs(told / measured - 1) <= MEMORY_AIM
    assert found["predicted"]["seconds"] > 0
