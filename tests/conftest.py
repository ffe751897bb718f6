"""Eight virtual CPU devices, set before JAX starts: every parallel path is really parallel."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
