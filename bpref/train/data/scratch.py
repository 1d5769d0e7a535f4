"""scratch: numbers that are made of a file larger than memory, in a file of their own, which lasts as long as this
process. It lies where temporary files do: the environment's TMPDIR names another place."""

import atexit
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bpref.leftovers import temporary_folder


def mapped_from(path: Path, parts: Iterable[np.ndarray]) -> np.memmap:
    """Arrays one after the other along their first axis, alike in all others and in dtype, memory-mapped.

    Args:
      path: the file that they are made of, for messages.
      parts: of at least one element in all.

    Raises:
      OSError: there is no room for them.
    """
    folder, remove = temporary_folder()
    atexit.register(remove)
    to, rows, like = Path(folder) / f"{path.name}.numbers", 0, np.empty(0)
    try:
        with to.open("wb") as file:
            for like in parts:
                file.write(np.ascontiguousarray(like).data)
                rows += len(like)
    except OSError as error:
        remove()
        if error.filename is not None:
            raise
        why = f"{error.strerror}, where {path} is written as numbers; TMPDIR names another place"
        raise OSError(error.errno, why, str(to)) from error
    except BaseException:
        remove()
        raise
    return np.memmap(to, like.dtype, "r", 0, (rows, *like.shape[1:]))
