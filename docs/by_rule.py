"""Files of what is found of every rule by a computation that takes too long for each build of the site."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bpref.nearest import meant
from bpref.rule import Rule
from bpref.rules import RULES, other_names


def read(file: Path) -> dict[str, Any]:
    """What was found, by rule."""
    return json.loads(file.read_text(encoding="utf-8"))


def main(file: Path, find: Callable[[Rule], Any], prog: str, description: str) -> int:
    """The command that finds it again, for the rules that are named or for all, and writes the file: a line a rule."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("rules", nargs="*", metavar="RULE", help="only these; the others stay as they are in the file")
    names = [meant("rule", name, RULES, other_names()) for name in parser.parse_args().rules] or list(RULES)
    found = read(file) if file.exists() else {}
    for name in names:
        found[name] = find(RULES[name])
        print(f"{name}: {json.dumps(found[name])}", flush=True)
        lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(found[name])}" for name in RULES if found.get(name))
        file.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    return 0
