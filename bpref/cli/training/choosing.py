"""What options of `bpref train` choose: the processes, the table, the recipe; what means nothing there is refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from bpref.cli.errors import UsageError

if TYPE_CHECKING:
    from bpref.sharding.hosts import Hosts
    from bpref.train.data.table import Table, Task
    from bpref.train.recipes import Recipe, TableRecipe

R = TypeVar("R", bound="Recipe")

DEFAULT = "diabetes"
"""What is trained on where nothing is named: the seed's own setting."""


def hosts_of(
    coordinator: str | None, processes: int | None, process: int | None, connect_timeout: int | None
) -> "Hosts | None":
    """Where the processes meet; None where there is one."""
    from bpref.sharding.hosts import CONNECT_SECONDS, Hosts

    if coordinator is None:
        given = {"processes": processes, "process": process, "connect_timeout": connect_timeout}
        require_none(given, "goes with --coordinator, where the processes of a run meet")
        return None
    hosts = Hosts(coordinator, processes, process, CONNECT_SECONDS if connect_timeout is None else connect_timeout)
    hosts.require_consistent()
    return hosts


def require_none(options: Mapping[str, object], why: str) -> None:
    """Raise for the first option that was given, of those that mean nothing here."""
    for option, value in options.items():
        if value is not None:
            raise UsageError(f"--{option.replace('_', '-')} {why}")


def choose_table(
    dataset: str | None, data: Path | None, target: str | None, task: str | None, missing: str | None, seed: int
) -> tuple["Table", "TableRecipe"]:
    """The table to train on and the settings that go with it; a wrong choice or wrong data raises."""
    from bpref.nearest import require_known
    from bpref.train.data.embedded import EMBEDDED
    from bpref.train.recipes import OF_IMAGES, OF_TEXT, OWN_DATA, RECIPES

    if data is None:
        for option, value in (("--target", target), ("--task", task), ("--missing", missing)):
            if value is not None:
                raise UsageError(f"{option} goes with --data, a table of your own")
        dataset = dataset or DEFAULT
        if Path(dataset).suffix:
            raise UsageError(f"{dataset!r} is no data set or model; a table of your own is --data {dataset}")
        require_known("data set or model", dataset, [*EMBEDDED, *OF_TEXT, *OF_IMAGES])
        return EMBEDDED[dataset](), RECIPES[dataset]
    if dataset is not None:
        raise UsageError(f"both {dataset!r} and --data are given; train on one of them")
    if task is not None:
        require_known("task", task, OWN_DATA)
    table = read(data, target, cast("Task | None", task), missing, seed)
    return table, OWN_DATA[table.task]


def read(data: Path, target: str | None, task: "Task | None", missing: str | None, seed: int) -> "Table":
    """The user's own table, by the file's suffix."""
    from bpref.train.data.read_csv import read_csv
    from bpref.train.data.read_npz import read_npy_table, read_npz

    try:
        match data.suffix.lower():
            case ".npz":
                require_none({"missing": missing}, "goes with a .csv")
                return read_npz(data, target or "y", task)
            case ".npy":
                require_none({"missing": missing}, "goes with a .csv")
                if target is None:
                    raise UsageError("--data with a .npy needs --target, another .npy with what is to be predicted")
                return read_npy_table(data, Path(target), task)
            case ".csv" | ".tsv":
                if target is None:
                    raise UsageError(f"--data with a {data.suffix} needs --target, the name of the column to predict")
                return read_csv(data, target, task, missing or "refuse", seed)
    except OSError as error:
        raise UsageError(f"{error.filename or data}: {error.strerror}") from error
    raise UsageError(f"{data}: expected a file that ends in .csv, .tsv, .npz or .npy")


def patterns(names: str | None) -> tuple[str, ...] | None:
    """`0.*,*.b` as names."""
    return None if names is None else tuple(name for name in names.split(",") if name)


def widths(layers: str) -> tuple[int, ...]:
    """`64,64` as numbers."""
    try:
        return tuple(int(width) for width in layers.split(",") if layers)
    except ValueError:
        raise UsageError(
            f"layers is {layers!r}, expected the width of each hidden layer, at least 1, such as 64,64"
        ) from None


def with_given(recipe: R, given: Mapping[str, object]) -> R:
    """The recipe with what was given in place of its own; another optimizer comes with its own learning rate."""
    from bpref.nearest import require_known
    from bpref.train.optimizers import OPTIMIZERS

    given = {option: value for option, value in given.items() if value is not None}
    optimizer = str(given.get("optimizer", recipe.optimizer))
    require_known("optimizer", optimizer, OPTIMIZERS)
    if optimizer != recipe.optimizer:
        given.setdefault("learning_rate", OPTIMIZERS[optimizer].learning_rate)
    return replace(recipe, **given)
