"""Removes environment variables that tests must not depend on, for this process and for those that it starts.

Imported before all else by ``conftest.py``, since libraries read some of them when they are imported.
"""

import os

# Of schedulers and launchers, which make a test a part of a distributed run; of services and caches.
PREFIXES = ("SLURM_", "TORCHELASTIC_", "HF_", "WANDB_", "MLFLOW_", "TRACKIO_")
NAMES = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "SMT_VISION_LAUNCHER",
    # of the terminal, by which output has colors and another width
    "TERM", "COLORTERM", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "PYTHON_COLORS",
    "TTY_COMPATIBLE", "TTY_INTERACTIVE",
    # of the network
    "http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy",
    "HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY",
    # of Python and Matplotlib
    "PYTHONWARNINGS", "MPLBACKEND",
)  # fmt: skip

for name in list(os.environ):
    if name in NAMES or name.startswith(PREFIXES):
        del os.environ[name]
