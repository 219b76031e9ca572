"""The table of memory: its slope, and that it can be measured."""

import pytest

from benchmarks.memory import N_FIRST, make_estimators, measure, slope


def test_the_slope_leaves_the_first_fits_out():
    sizes = [100.0 - 9.0 * fit for fit in range(N_FIRST)] + [10.0, 10.5, 11.0]
    assert slope(sizes) == pytest.approx(512.0)  # half a MiB in a fit


def test_memory_is_measured_after_each_fit():
    assert len(make_estimators()) == 6
    sizes = measure("GaussianMoEPolicy", 2, n_rows=50)
    assert len(sizes) == 2
    assert min(sizes) > 10.0  # MiB: Python alone takes more
