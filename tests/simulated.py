"""Several devices, simulated on a CPU: XLA counts them when it starts, so a process of its own has them."""

import os
import subprocess
import sys


def with_devices(count, environment=os.environ):
    """The environment of a process that has so many."""
    flags = f"{environment.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return {**environment, "XLA_FLAGS": flags}


def on_devices(count: int, *arguments: str) -> str:
    """What Python prints, called with these arguments, where there are so many devices."""
    ran = subprocess.run([sys.executable, *arguments], env=with_devices(count), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
