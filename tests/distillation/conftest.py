import pytest

from tests.estimators import small_teacher
from tests.mixture.toys import directions


@pytest.fixture(scope="package")
def two_ways():
    """Demonstrations like those of the other tests, shared here, so no one may write to them."""
    X, y = directions()
    X.flags.writeable = y.flags.writeable = False
    return X, y


@pytest.fixture(scope="package")
def teacher(two_ways):
    """A fitted teacher of the defaults; tests must not change it."""
    return small_teacher(window_size=2).fit(*two_ways)
