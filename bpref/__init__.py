"""Back-propagation derived by hand, layer by layer, as pure JAX functions, verified against `jax.grad`."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bpref.public import *  # noqa: F403, the one list of names is there
else:

    def __getattr__(name):
        """Load the public names with the first that is asked for.

        JAX reads its environment variables once, when it is imported; and pytest imports its plugins, of which this
        package has one, before a conftest can set any.
        """
        if not name.startswith("__") or name == "__all__":
            public = import_module("bpref.public")
            globals().update({known: getattr(public, known) for known in ("__all__", *public.__all__)})
        if name not in globals():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]

    def __dir__():
        return sorted({*globals(), *import_module("bpref.public").__all__})
