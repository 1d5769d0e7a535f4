"""Back-propagation derived by hand, layer by layer, as pure JAX functions, verified against `jax.grad`.

The public names stand in `__init__.pyi`. Each is loaded when it is first used, and JAX with it: it reads its
environment variables once, when it is imported; and pytest imports its plugins, of which this package has one, before a
conftest can set any.
"""

import lazy_loader

_named, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """A public name; or `__version__`, that of the package as it is installed."""
    if name != "__version__":
        return _named(name)
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:  # run from its sources
        return "0+unknown"
