"""`python -m bpref` and the `bpref` command."""

import sys

from bpref.cli.ending import WRONG_USE, end_at_interrupt, ending, say


def main() -> None:
    """Run the command line and exit with its code."""
    end_at_interrupt()
    sys.exit(ending(_run))


def _run() -> int:
    """The command line; without the `cli` extra, how to get it."""
    try:
        from bpref.cli.app import run
    except ModuleNotFoundError as missing:
        say(f"the command line needs the package {missing.name!r}: pip install 'bpref[cli]'")
        return WRONG_USE
    return run(sys.argv[1:])


if __name__ == "__main__":
    main()
