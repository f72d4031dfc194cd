"""What a training run costs: time, peak memory, and on what; it survives a resume, peaks as their maximum."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from cir import provenance


@dataclass
class Cost:
    """Cost so far, interrupted parts included; in the first process, where there are several.

    `seconds` are those of the steps, `prepare_seconds` those of making the source ready (next to nothing where an
    earlier run left what takes long). Memory is in MB (10^6 bytes): resident, and allocated by torch on a GPU.
    """

    seconds: float = 0.0
    prepare_seconds: float = 0.0
    peak_mb: float = 0.0
    gpu_peak_mb: float | None = None
    device: str = ""
    processes: int = 1
    threads: int = 1

    running = False  # no field: peaks are looked at only by a process that trains, not by one that finds a finished run

    def start(self, device: torch.device, processes: int) -> None:
        """Say what the run stands on, and count peaks from here: what the process held before is not its cost."""
        self.running = True
        self.processes, self.threads = processes, torch.get_num_threads()
        self.device = torch.cuda.get_device_name(device) if device.type == "cuda" else provenance.processor()
        provenance.reset_peak()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.gpu_peak_mb = self.gpu_peak_mb or 0.0

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Count the time of the block as preparation."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.prepare_seconds += time.monotonic() - started

    def measure(self, device: torch.device) -> dict[str, Any]:
        """Look at the peaks, and return everything as JSON."""
        if self.running:
            self.peak_mb = max(self.peak_mb, provenance.peak_mb())
        if self.running and self.gpu_peak_mb is not None and device.type == "cuda":
            self.gpu_peak_mb = max(self.gpu_peak_mb, torch.cuda.max_memory_allocated(device) / 1e6)
        return asdict(self)

    def resume(self, kept: Mapping[str, Any]) -> None:
        """Go on from what a snapshot says; one written before costs were kept says less."""
        for name in (field.name for field in fields(self)):
            setattr(self, name, kept.get(name, getattr(self, name)))
