"""`python -m bpref` and the `bpref` command."""

import sys


def main() -> None:
    """Run the command line; without the `cli` extra, say how to get it."""
    try:
        from bpref.cli.app import run
    except KeyboardInterrupt:
        print("bpref: interrupted", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as missing:
        sys.exit(f"bpref: the command line needs the package {missing.name!r}: pip install 'bpref[cli]'")
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
