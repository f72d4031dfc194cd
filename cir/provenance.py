"""Where a number comes from: code version, package versions, peak memory. Standard library only."""

import platform
import resource
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cir

PACKAGES = ("numpy", "pillow", "safetensors", "scipy", "tokenizers", "torch", "transformers")
"""The packages that can move a number."""


@cache
def code() -> tuple[str, str, bool]:
    """Return package version, git commit of the checkout, and whether tracked files were changed.

    The commit is empty where the package does not run from a git checkout of its own, or git is absent.
    """
    root = Path(cir.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return cir.__version__, "", False
    commit = _git(root, "rev-parse", "HEAD")
    return cir.__version__, commit, bool(commit and _git(root, "status", "--porcelain", "--untracked-files=no"))


@cache
def packages() -> dict[str, str]:
    """Return the versions of Python and of the packages that can move a number."""
    found = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def peak_mb() -> float:
    """Return the process's peak resident memory so far (or since `reset_peak`), in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def reset_peak() -> bool:
    """Count the peak resident memory from here on, where the system can (Linux); says whether it could."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@cache
def processor() -> str:
    """Name the CPU, as `/proc/cpuinfo` does where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name") and ":" in line]
    return named[0] if named else platform.processor() or platform.machine()


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
