"""Exact intervals and paired comparisons against the distributions that define them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from geomem.metrics import intervals


@given(st.integers(0, 30), st.integers(1, 30), st.sampled_from([0.8, 0.95]))
def test_interval_inverts_the_binomial_test(count, more, confidence):
    total = count + more
    result = intervals.rate(np.arange(total) < count, confidence)
    tail = (1 - confidence) / 2
    if count:
        assert stats.binom.sf(count - 1, total, result.low) == pytest.approx(tail)
    else:
        assert result.low == 0
    assert stats.binom.cdf(count, total, result.high) == pytest.approx(tail)


def test_compares_paired_arms_seed_by_seed():
    both, first, second = 30, 15, 4
    a = np.repeat([True, True, False, False], [both, first, second, 51])
    b = np.repeat([True, False, True, False], [both, first, second, 51])
    result = intervals.compare(a, b)
    assert (result.only_first, result.only_second) == (15, 4)
    assert result.difference == pytest.approx(-0.11)
    # Twice the probability of at most 4 heads in 19 tosses.
    assert result.p == pytest.approx(2 * stats.binom.cdf(4, 19, 0.5))
    error = np.std(b.astype(float) - a) / np.sqrt(100)  # of the mean difference
    assert result.low == pytest.approx(-0.11 - 1.96 * error, abs=0.02)
    assert result.high == pytest.approx(-0.11 + 1.96 * error, abs=0.02)
    assert intervals.compare(a, a).p == 1
    with pytest.raises(ValueError, match=r"second must have 100 flags like first, got 3"):
        intervals.compare(a, b[:3])
