"""Several devices, simulated on a CPU: XLA counts them when it starts, so a process of its own has them."""

import os
import subprocess
import sys


def on_devices(count: int, *arguments: str) -> str:
    """What Python prints, called with these arguments, where there are so many devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    command = [sys.executable, *arguments]
    ran = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
