"""Two processes with torchrun, for the tests that hold them against one."""

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
"""What a test file started as a script needs: one thread, and the tests importable."""


def two_processes(*arguments, timeout):
    """Run a script with its arguments as two processes and return what they printed; fails where they fail.

    One pair at a time on a machine: with several test workers, two cores would have four processes and two agents.

    Gloo's listener throws in a thread of its own, and so aborts the process, where a connection is gone before it was
    accepted (https://github.com/pytorch/gloo/issues/514). That is no result of the script: such a pair runs once more.
    """
    said = []
    for _ in range(2):
        with (Path(tempfile.gettempdir()) / f"cir-torchrun-{os.getuid()}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = subprocess.run(
                [sys.executable, *COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env=ENVIRONMENT, cwd=ROOT, text=True, timeout=timeout, check=False,
            )  # fmt: skip
        if done.returncode == 0:
            return done.stdout
        said.append(done.stdout)
        if "SIGABRT" not in done.stdout:
            break
    raise AssertionError("\n--- and once more ---\n".join(text[-6000:] for text in said))
