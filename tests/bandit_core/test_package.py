"""The package's face: its example runs, its names are all there."""

import doctest

import bandit_core


def test_the_example_in_the_package_runs() -> None:
    result = doctest.testmod(bandit_core)
    assert result.attempted >= 4
    assert result.failed == 0


def test_all_names_exist_and_are_sorted_by_kind() -> None:
    for name in bandit_core.__all__:
        assert hasattr(bandit_core, name)
    assert len(set(bandit_core.__all__)) == len(bandit_core.__all__)
