"""A run's own process: the ordinary command, which is asked to stop and save when the one that started it is gone.

    python -m cir.ablation.child train config.yaml --out folder

Standard input is a pipe whose other end the starting process holds. However that process ends, SIGKILL included, the
pipe closes; no run goes on unnoticed.
"""

import os
import runpy
import signal
import threading
import time

GRACE = 60.0
"""Seconds to save in, after which a second signal ends the process as usual."""


def watch() -> None:
    """Wait until the pipe closes, then ask this process to stop, as Ctrl-C would."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=watch, daemon=True).start()
    runpy.run_module("cir", run_name="__main__", alter_sys=True)
