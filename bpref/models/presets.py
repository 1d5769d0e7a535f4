"""A model's config, or the name of one that was published."""

from collections.abc import Mapping
from typing import TypeVar

from bpref.dtypes import require_type
from bpref.nearest import meant

Config = TypeVar("Config")


def preset(who: str, config: Config | str, kind: type[Config], presets: Mapping[str, Config]) -> Config:
    """The config, or the preset of this name; `ValueError` for an unknown one, which names those that are near.

    Raises:
      TypeError: it is neither a name nor of that kind.
    """
    if isinstance(config, str):
        return presets[meant("preset", config, presets)]
    require_type(who, "config", config, kind)
    return config
