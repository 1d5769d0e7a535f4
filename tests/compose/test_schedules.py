"""Schedules of pipelines: what can be done when it is done, and the bubbles and caches of the papers."""

from fractions import Fraction

import numpy as np
import pytest

import bpref
from bpref.compose.schedules import most_between
from tests.refusing import refusals

SIZES = [(1, 1), (1, 5), (2, 1), (3, 4), (4, 2), (4, 16), (8, 8)]
"""Stages P and micro-batches M."""


def ticks_of(of, P, M):
    """When each stage has each micro-batch, (M, P); each once."""
    when = {(m, p): t for (t, p), m in np.ndenumerate(of) if m >= 0}
    assert len(when) == M * P == np.count_nonzero(of >= 0)
    return np.array([[when[m, p] for p in range(P)] for m in range(M)])


@pytest.mark.parametrize(("P", "M"), SIZES)
@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_nothing_is_done_before_what_it_needs_and_the_bubble_is_that_of_the_paper(name, P, M):
    schedule = bpref.pipeline_schedule(name, P, M)
    up, down = (ticks_of(of, P, M) for of in (schedule.forward, schedule.backward))
    assert np.all(schedule.params < 0)
    assert schedule.waiting == (0,) * P
    assert not np.any((schedule.forward >= 0) & (schedule.backward >= 0))
    assert np.all(np.diff(up, axis=1) == 1)
    assert np.all(np.diff(down, axis=1) == -1)
    assert np.all(up[:, -1] < down[:, -1])
    assert schedule.ticks == 2 * (M + P - 1) == 1 + down.max()
    assert schedule.bubble == pytest.approx(float(Fraction(P - 1, M + P - 1)))


@pytest.mark.parametrize(("P", "M"), SIZES)
def test_1f1b_goes_up_as_often_as_there_are_stages_behind_and_then_down_and_up_by_turns(P, M):
    schedule = bpref.pipeline_schedule("1f1b", P, M)
    assert schedule.kept == tuple(min(P - p, M) for p in range(P))
    assert bpref.pipeline_schedule("gpipe", P, M).kept == (M,) * P
    for p in range(P):
        up, down = schedule.forward[:, p], schedule.backward[:, p]
        order = ["F" if f >= 0 else "B" for f, b in zip(up, down, strict=True) if max(f, b) >= 0]
        first = min(P - p, M)
        assert "".join(order) == "F" * first + "BF" * (M - first) + "B" * first
        assert [*up[up >= 0]] == [*down[down >= 0]] == [*range(M)]


@pytest.mark.parametrize(("P", "M"), SIZES)
def test_zero_bubble_has_a_third_of_the_bubble_and_room_for_as_many_micro_batches_as_stages(P, M):
    schedule = bpref.pipeline_schedule("zero-bubble", P, M)
    up, down, rest = (ticks_of(of, P, M) for of in schedule)
    assert np.all(np.count_nonzero(np.stack(schedule) >= 0, axis=0) <= 1)
    assert np.all(np.diff(up, axis=1) > 0)
    assert np.all(np.diff(down, axis=1) < 0)
    assert np.all(up[:, -1] < down[:, -1])
    assert np.all(down < rest)
    assert schedule.ticks == 1 + rest.max() == 3 * M + P - 1 + max(P - M, 0)
    assert max(schedule.kept) == max(schedule.waiting) == min(P, M)
    idle = schedule.ticks - 3 * M
    assert schedule.bubble == pytest.approx(idle / schedule.ticks)
    if M >= P:
        assert 3 * idle == 3 * (bpref.pipeline_schedule("1f1b", P, M).ticks - 2 * M) / 2


def test_what_comes_waits_for_no_more_than_one_other():
    for P, M in SIZES:
        for name in ("1f1b", "zero-bubble"):
            schedule = bpref.pipeline_schedule(name, P, M)
            assert max(most_between(schedule.from_before, schedule.forward)) <= (2 if name == "zero-bubble" else 1)
            assert max(most_between(schedule.from_behind, schedule.backward)) == 1


def test_it_is_drawn():
    assert str(bpref.pipeline_schedule("gpipe", 2, 3)) == (
        "0   F0 F1 F2 .  .  B2 B1 B0\n"
        "1   .  F0 F1 F2 B2 B1 B0 ."
    )  # fmt: skip
    assert str(bpref.pipeline_schedule("zero-bubble", 2, 3)) == (
        "0   F0 F1 .  B0 F2 B1 W0 W1 B2 W2\n"
        "1   .  F0 B0 F1 B1 F2 W0 B2 W1 W2"
    )  # fmt: skip


test_bad_calls_are_refused = refusals(
    {
        "pipeline_schedule: schedule is '1F1B', expected one of gpipe, 1f1b, zero-bubble": ("1F1B", 2, 3),
        "pipeline_schedule: stages is 0, expected a positive integer": ("1f1b", 0, 3),
        "pipeline_schedule: microbatches is 1.5, expected a positive integer": ("1f1b", 2, 1.5),
    },
    lambda call: bpref.pipeline_schedule(*call),
)
