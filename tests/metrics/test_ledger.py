"""The supervisor's ledger of traffic as histories: what processors tell, in any order and through restarts, adds up."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from messages.telemetry import BOUNDS, Histogram, Tally, Traffic
from supervisor.traffic import SLOTS, STEP, STEPS, Ledger, quantile

BEGAN = 1_000_000.0
ONE = "demo-processor-0"


def told(
    at: float, slot: str = ONE, generation: int = 1, started: float = BEGAN + 1, model: str = "demo", **fields: Any
) -> Traffic:
    """What a processor tells at a time after the ledger's begin; counts of chats are given by their names."""
    whole = {name: fields.pop(name) for name in ("queued", "in_flight", "refused", "false_alarms") if name in fields}
    tally = Tally(**fields)
    return Traffic(
        slot=slot, generation=generation, model=model, at=BEGAN + at, started=started, kinds={"chat": tally}, **whole
    )


def fed(*history: Traffic) -> Ledger:
    ledger = Ledger(BEGAN)
    for one in history:
        ledger.take(one, one.at)
    return ledger


def spread(bucket: int, count: int, seconds: float) -> Histogram:
    counts = [0] * (len(BOUNDS["ttft"]) + 1)
    counts[bucket] = count
    return Histogram(counts, seconds)


def test_what_is_new_is_told_by_the_second_and_by_the_step() -> None:
    ledger = fed(
        told(1, admitted=10, completion_tokens=100, ttft=spread(3, 10, 0.4)),
        told(2, admitted=20, completion_tokens=300, queued=3, in_flight=7, failed={500: 2}, refused={429: 4}),
    )
    now = ledger.now("demo", BEGAN + 4)
    assert (now.requests, now.tokens) == (20 / 4, 300 / 4)
    assert (now.queued, now.in_flight, now.failed, now.refused) == (3, 7, 2, 4)
    low, high = BOUNDS["ttft"][2:4]
    assert now.ttft_p50 is not None and low < now.ttft_p50 < high
    assert now.itl_p50 is None
    assert ledger.series("demo", BEGAN + 4) == []
    (point,) = ledger.series("demo", BEGAN + STEP + 1)
    assert (point.at, point.requests, point.tokens) == (BEGAN, 20 / STEP, 300 / STEP)


def test_a_quiet_time_has_steps_of_its_own_in_which_what_waits_goes_on_waiting() -> None:
    ledger = fed(told(1, admitted=5, queued=2))
    points = ledger.series("demo", BEGAN + 4 * STEP)
    assert [(point.at - BEGAN, point.requests, point.queued) for point in points] == [
        (0, 5 / STEP, 2),
        (STEP, 0, 2),
        (2 * STEP, 0, 2),
        (3 * STEP, 0, 2),
    ]
    assert ledger.series("demo", BEGAN + 4 * STEP, since=points[2].at + STEP) == points[3:]
    ledger.gone(ONE)
    assert ledger.now("demo", BEGAN + 4 * STEP).queued == 0


def test_after_a_restart_counting_begins_anew_and_no_total_falls() -> None:
    ledger = fed(told(1, admitted=100), told(2, generation=2, admitted=3), told(3, generation=2, admitted=5))
    assert ledger.totals["demo"].kinds["chat"].admitted == 105
    assert ledger.now("demo", BEGAN + 4).requests == 105 / 4
    late = told(2.5, generation=1, admitted=101)
    ledger.take(late, BEGAN + 4)
    ledger.take(told(2, generation=2, admitted=3), BEGAN + 4)
    assert ledger.totals["demo"].kinds["chat"].admitted == 105


def test_what_was_counted_before_the_ledger_began_is_no_traffic_of_now() -> None:
    ledger = fed(told(1, started=BEGAN - 60, admitted=1_000), told(2, started=BEGAN - 60, admitted=1_004))
    assert ledger.totals["demo"].kinds["chat"].admitted == 1_004
    assert ledger.now("demo", BEGAN + 4).requests == 4 / 4


def test_it_holds_fifteen_minutes_and_so_many_processors_and_no_more() -> None:
    ledger = Ledger(BEGAN)
    for step in range(STEPS + 50):
        at = step * STEP + 1
        ledger.take(told(at, admitted=step + 1), BEGAN + at)
    points = ledger.series("demo", BEGAN + (STEPS + 50) * STEP)
    assert len(points) == STEPS
    assert {point.requests for point in points} == {1 / STEP}
    assert len(ledger.series("demo", BEGAN + 10 * STEPS * STEP)) == STEPS
    for number in range(SLOTS + 10):
        ledger.take(told(1, slot=f"demo-processor-{number}", model=f"m{number}", admitted=1), BEGAN + 1)
    assert len(ledger.models) <= SLOTS
    for number in range(SLOTS + 10):
        ledger.take(told(10_000 + number, model=f"n{number}"), BEGAN + 10_000)
    assert len(ledger.models) <= SLOTS


def test_what_it_does_not_know_is_left_out() -> None:
    strange = told(1, admitted=1, ttft=Histogram([1, 2, 3], 5.0), failed={7: 1, 500: 1})
    strange.kinds["dance"] = Tally(admitted=9)
    ledger = fed(strange)
    total = ledger.totals["demo"]
    assert list(total.kinds) == ["chat"]
    assert (total.kinds["chat"].ttft.counts, total.kinds["chat"].failed) == ([], {500: 1})
    assert ledger.now("other", BEGAN + 1).requests == 0
    assert ledger.series("other", BEGAN + 1) == []


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 50), st.floats(0, 30), st.booleans()), max_size=60
    )
)
def test_totals_never_fall_whoever_is_restarted_and_steps_add_up_to_them(
    history: list[tuple[int, bool, int, float, bool]],
) -> None:
    ledger, now = Ledger(BEGAN), BEGAN
    lives = {number: [1, 0] for number in range(3)}
    expected = before = 0
    for number, restarted, more, seconds, again in history:
        now += seconds
        if restarted:
            lives[number] = [lives[number][0] + 1, 0]
        lives[number][1] += more
        expected += more
        generation, admitted = lives[number]
        message = told(now - BEGAN, f"demo-processor-{number}", generation, admitted=admitted)
        ledger.take(message, now)
        if again:
            ledger.take(message, now)
        total = ledger.totals["demo"].kinds["chat"].admitted
        assert total >= before
        before = total
    assert before == expected
    points = ledger.series("demo", now + STEP)
    if now - BEGAN < (STEPS - 2) * STEP:
        assert sum(point.requests * STEP for point in points) == pytest.approx(expected)


def test_quantiles_are_those_that_prometheus_would_say() -> None:
    bounds = (1.0, 2.0, 4.0)
    assert quantile(bounds, [0, 0, 0, 0], 0.5) is None
    assert quantile(bounds, [0, 4, 0, 0], 0.5) == 1.5
    assert quantile(bounds, [2, 2, 0, 0], 0.5) == 1.0
    assert quantile(bounds, [0, 0, 1, 0], 1.0) == 4.0
    assert quantile(bounds, [0, 0, 0, 9], 0.5) == 4.0, "nothing is known beyond the last bound"
