"""The simulation of a served network: against queueing theory, and against sums by hand."""

import numpy as np
import pytest
import serving_plan
from serving_plan import Curve, Service, gains, plan, planned, simulate

SHARES = (0.4, 0.3, 0.2, 0.1)


def linear(seconds, rows=(1, 2, 4, 8)):
    return Curve(rows, tuple(seconds * n for n in rows))


def chain(seconds, hop=0.0, batch=8, wait=0.0):
    return [Service(n, (linear(s),), hop, batch, wait) for n, s in enumerate(seconds)]


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_server_waits_as_queueing_theory_says(load):
    """M/D/1: the mean wait is load * t / (2 (1 - load))."""
    t, rng = 0.01, np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(t / load, 40_000))
    (server,) = chain([t], batch=1)
    found = simulate([server], [1], np.zeros(40_000, int), arrivals)
    assert found.waits[0] == pytest.approx(load * t / (2 * (1 - load)), rel=0.05)
    np.testing.assert_allclose(found.seconds.mean(), found.waits[0] + t, rtol=0.02)


def test_a_request_alone_takes_the_stages_up_to_its_exit_and_no_more():
    services = chain([0.01, 0.02, 0.04], hop=0.001, wait=0.005)
    exits = np.array([0, 1, 2, 1])
    found = simulate(services, [1, 1, 1], exits, np.arange(4) * 10.0, warm=0)
    each = np.cumsum([0.01, 0.02, 0.04]) + np.arange(1, 4) * (0.001 + 0.005)
    np.testing.assert_allclose(found.seconds, each[exits], atol=1e-6)
    assert found.rows == [1, 1, 1]


def test_rows_share_batches_and_those_that_go_on_are_one_call_answered_together():
    services = chain([0.01, 0.1, 0.1], hop=0.001, batch=8)
    exits = np.array([0, 1, 0, 2] * 4)
    found = simulate(services, [1, 1, 1], exits, np.zeros(16), warm=0)
    # The first row goes at once (nothing is waited for), the others in batches of 8 and 7, a call each.
    ends = np.cumsum([0.011, 8 * 0.011, 7 * 0.011])
    np.testing.assert_allclose(found.seconds[exits == 0], ends[[0, 1, 1, 1, 1, 2, 2, 2]], atol=1e-9)
    # Rows 1, 3, 5, 7 go on as one call; 3 and 7 of them to the end, and 1 and 5 are answered with them.
    second = ends[1] + 0.001 + 0.4
    third = second + 0.001 + 0.2
    np.testing.assert_allclose(found.seconds[[1, 3, 5, 7]], third, atol=1e-9)
    # The other four wait behind them at the second stage, and find the third one free.
    np.testing.assert_allclose(found.seconds[[9, 11, 13, 15]], second + 0.401 + 0.201, atol=1e-9)
    assert found.rows == [pytest.approx(16 / 3), 4, 2]


def test_a_plan_keeps_its_limit_with_no_more_than_the_load_asks_for():
    services = chain([0.01] * 4, hop=0.001, wait=0.002)
    before = 0
    for rate in (20, 200, 2000):
        replicas, found = plan(services, SHARES, rate, limit=0.2)
        assert found.p99 <= 0.2
        # What comes to each stage, and takes this of a core a second.
        needed = rate * 0.01 * np.array([1, 0.6, 0.3, 0.1])
        assert (np.array(replicas) > needed).all() and sum(replicas) <= 1.5 * needed.sum() + 4
        assert replicas == sorted(replicas, reverse=True) and sum(replicas) >= before
        before = sum(replicas)


def test_a_limit_that_one_image_alone_would_break_has_no_plan():
    assert plan(chain([0.1, 0.1]), (0.5, 0.5), 1, limit=0.15) is None
    report = planned([linear(0.1)] * 2, (0.5, 0.5), 1, 0.15, 0.0, 8, 0.0)
    assert all("replicas" not in row for row in report["plans"])


def test_gains_where_batches_gain_nothing_are_the_work_that_is_saved():
    """Four equal stages, reached by 1, 0.6, 0.3 and 0.1 of the rows: 4 / 2 times the throughput."""
    found = gains([linear(0.01)] * 4, 1, SHARES, 0.0, 8, 0.0)
    assert (found["one"], found["chained"]) == pytest.approx((2.0, 2.0))
    assert found["milliseconds of the whole network, one row"] == pytest.approx(40)
    # A hop of 10 ms: 50 ms for the whole network, 30 in one deployment. In a chain calls bring 4.8, 4 and 2.7
    # rows of a full batch of 8: 1 + 0.6 / 4.8 + 0.3 / 4 + 0.1 / 2.67 hops.
    found = gains([linear(0.01)] * 4, 1, SHARES, 0.01, 8, 0.0)
    assert (found["one"], found["chained"]) == pytest.approx((5 / 3, 5 / (2 + 1 + 0.125 + 0.075 + 0.0375)))


def test_a_curve():
    curve = Curve((1, 2, 4), (0.1, 0.15, 0.25))
    assert [curve(n) for n in (0, 1, 3, 4, 8)] == pytest.approx([0, 0.1, 0.2, 0.25, 0.5])
    assert serving_plan.fast(Curve(serving_plan.BATCHES, (0.05,) * 5))(10) == pytest.approx(
        0.002 + 10 * 0.001
    )
