"""The command line of the product."""

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments without the program's name; ``sys.argv[1:]`` when not given.

    Returns
    -------
    int
        Exit status: 0 for success.
    """
    parser = argparse.ArgumentParser(prog="bandit-streams", description="Traffic allocations from Kafka.")
    parser.parse_args(argv)
    return 0
