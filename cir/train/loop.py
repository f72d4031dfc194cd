"""The training loop, once: any method, exact resume, mixed precision, accumulation, several processes."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from cir import progress
from cir.backbones.base import BackboneLike
from cir.config import TrainConfig
from cir.errors import InputError, RunError, nearest
from cir.methods import checkpoint
from cir.methods.base import Images, ImageTriplets, Method, NoStore, Store
from cir.methods.texts import fingerprint
from cir.optim import Average, Count, adamw, counts, first_beta, rate, trainables
from cir.train.board import Board
from cir.train.checks import DTYPES, check, identity, left_out
from cir.train.cost import Cost
from cir.train.folder import Folder, Snapshot
from cir.train.order import Feed, Share, blocks_of
from cir.train.processes import Processes, join
from cir.train.state import pack, unpack
from cir.train.stopping import Stopped, noted_signals

Evaluate = Callable[[Method, int], dict[str, float]]
"""Scores a method after a number of steps: values by `benchmark:metric`, higher is better."""
Pictures = Callable[[], Mapping[str, Image]]
"""Draws what the last evaluation found: a picture per benchmark."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves; `seconds` and `steps` count interrupted parts too, `peak_mb` is of this process.

    `cost` says the same and more, as the checkpoint keeps it (`cir.train.cost.Cost`).
    """

    steps: int
    seconds: float
    peak_mb: float
    cost: Mapping[str, Any]
    checkpoint: Path
    history: Path
    source: str
    """Fingerprint of the training source."""
    trained: tuple[Count, ...]
    best: Mapping[str, Any] | None
    """Step and value of the checkpoint kept by `select`, None for `last`."""


def train(
    method: Method,
    backbone: BackboneLike,
    source: Sequence[Any] | Images | ImageTriplets,
    config: TrainConfig,
    out: Path,
    *,
    seed: int = 0,
    evaluate: Evaluate | None = None,
    resume: bool = True,
    store: Store | None = None,
    pictures: Pictures | None = None,
) -> TrainResult:
    """Train a method in place and leave a checkpoint in `out`, which a killed run of the same settings resumes.

    A resumed run ends with the bits of an uninterrupted one (on the same machine's CPU). Under torchrun the global
    batch is shared; the result is the single process's up to rounding. `resume=False` starts afresh, deleting what
    an earlier run left. At the end the method holds the weights of the returned checkpoint. `store` keeps what
    preparing the source computes; without one it is computed again in every run. `pictures` shows what the evaluation
    just made found, for TensorBoard.

    Raises `InputError` for settings that cannot be met or a folder of another run, `RunError` for a loss or gradient
    that is not finite, `Stopped` after Ctrl-C or SIGTERM, once the state is saved.
    """
    check(method, source, config, evaluate is not None)
    processes = join(backbone.device)
    folder, store = Folder(Path(out)), store or NoStore()
    loop = _Loop(method, backbone, source, config, folder, seed, evaluate, processes, store, pictures)
    loop.open(resume)
    return loop.run()


class _Loop:
    """The state of one training run."""

    def __init__(
        self,
        method: Method,
        backbone: BackboneLike,
        source: Sequence[Any] | Images | ImageTriplets,
        config: TrainConfig,
        folder: Folder,
        seed: int,
        evaluate: Evaluate | None,
        processes: Processes,
        store: Store,
        pictures: Pictures | None,
    ) -> None:
        self.store, self.pictures = store, pictures
        self.method, self.backbone, self.source, self.config = method, backbone, source, config
        self.folder, self.seed, self.evaluate, self.processes = folder, seed, evaluate, processes
        self.share = Share(config.batch, config.accumulate, processes.rank, processes.size)
        self.named = trainables(method, method.trains)
        self.parameters = list(self.named.values())
        processes.same_start(self.parameters)
        self.source_id = fingerprint(source)
        self.identity = identity(method, backbone, self.source_id, config, seed)
        first, second = config.betas
        self.optimizer = adamw(
            self.named,
            lr=config.lr,
            weight_decay=config.weight_decay,
            betas=(first, second),
            eps=config.eps,
            undecayed=config.undecayed,
        )
        self.scaler = torch.amp.GradScaler(backbone.device.type, enabled=config.precision == "float16")
        self.average = Average(self.named, config.ema) if config.ema else None
        self.best: dict[str, Any] | None = None
        self.step = 0
        self.cost = Cost()
        self.board: Board | None = None

    def open(self, resume: bool) -> None:
        """Take the folder, and the state of the last snapshot in it."""
        if self.processes.first:
            if not resume:
                self.folder.clear()
            self.folder.claim(self.identity)
        self.processes.wait()
        snapshot = self.folder.latest(self.backbone.device)
        if snapshot is not None:
            self._load(snapshot)
        if self.processes.first:
            self.folder.cut_history(self.step)

    def run(self) -> TrainResult:
        """Go through the remaining steps, then leave the checkpoint."""
        if self.step < self.config.steps:
            self.cost.start(self.backbone.device, self.processes.size)
            self._steps()
        return self._finish()

    def _steps(self) -> None:
        first = self.processes.first
        draws = self.config.steps * self.config.batch
        backbone: Any = self.backbone
        with self.cost.preparing():
            batches = self.method.prepare(backbone, self.source, seed=self.seed, draws=draws, store=self.store)
        blocks = blocks_of(self.source, len(batches))
        feed = Feed(batches, self.share, self.seed, self.config.workers, self.backbone.device, blocks)
        with ExitStack() as stack:
            asked = stack.enter_context(noted_signals())
            micro = stack.enter_context(feed.read(self.step, self.config.steps))
            bar = stack.enter_context(progress.bar(self.config.steps, "training")) if first else None
            if bar is not None:
                bar.skip(self.step)
            self.board = stack.enter_context(Board(self.folder.path, self.step)) if first else None
            self.method.train()
            while self.step < self.config.steps:
                self._one(micro, asked)
                if bar is not None:
                    bar.advance(1)

    def _one(self, micro: Iterator[Any], asked: list[int]) -> None:
        """Take one step, and do what is due after it."""
        started = time.monotonic()
        config = self.config
        place = (self.step, config.schedule_steps or config.steps, config.warmup)
        factor = rate(config.schedule, *place, config.div)
        first, second = config.betas
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * factor
            group["betas"] = (first_beta(config.schedule, *place, first), second)
        terms, stop = self._gradients(micro, asked)
        norm = self._update()
        self.step += 1
        self.cost.seconds += time.monotonic() - started
        if self._due(self.config.log_every):
            speed = self.config.batch / max(time.monotonic() - started, 1e-9)
            self._log({"loss": sum(terms.values()), **terms, "lr": self.config.lr * factor, "gradient_norm": norm,
                       "rows_per_second": speed, "seconds": self.cost.seconds})  # fmt: skip
        if self.evaluate is not None and self.config.evaluate_every and self._due(self.config.evaluate_every):
            self._evaluate()
        if stop or self._due(self.config.save_every):
            self._save()
        if stop and self.step < self.config.steps:
            raise Stopped(f"stopped after step {self.step} of {self.config.steps}, saved in {self.folder.path}; "
                          "the same command goes on from there")  # fmt: skip

    def _gradients(self, micro: Iterator[Any], asked: list[int]) -> tuple[dict[str, float], bool]:
        """Accumulate gradients over the micro-batches, average over processes; return the loss terms."""
        self.optimizer.zero_grad(set_to_none=True)
        kind = DTYPES[self.config.precision]
        total: dict[str, Tensor] = {}
        for _ in range(self.config.accumulate):
            batch = next(micro)
            mixed = torch.autocast(self.backbone.device.type, dtype=kind) if kind != torch.float32 else nullcontext()
            with mixed:
                terms = self.method.losses(self.backbone, batch)  # type: ignore[arg-type]
            loss = torch.stack([term.float() for term in terms.values()]).sum() / self.config.accumulate
            self.scaler.scale(loss).backward()
            for name, term in terms.items():
                total[name] = total.get(name, term.new_zeros(())) + term.detach().float() / self.config.accumulate
        report = torch.stack([*total.values(), loss.new_tensor(float(bool(asked)))]).float()
        self.processes.average([report])
        values = report.tolist()
        if not all(map(math.isfinite, values)):
            raise self._broken("loss", dict(zip(total, values, strict=False)))
        if self.method.all_reduce:
            self.processes.average_gradients(self.parameters)
        return dict(zip(total, values, strict=False)), values[-1] > 0

    def _update(self) -> float:
        """Clip, step, move the average; return the gradient norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm) and not self.scaler.is_enabled():  # float16 overflows now and then: it skips
            raise self._broken("gradient norm", float(norm))
        if self.config.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.step)
        return float(norm)

    def _broken(self, what: str, value: Any) -> RunError:
        good = self.folder.steps()
        told = f"the last good snapshot is {good[-1]}" if good else "no snapshot was written yet"
        return RunError(
            f"{what} is {value} at step {self.step + 1}; {told}. A lower learning rate, clip_norm or bfloat16 in place "
            "of float16 may help"
        )

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Show the weights that count (the average, where there is one) in evaluation mode."""
        self.method.eval()
        with self.average.applied() if self.average is not None else nullcontext():
            yield
        self.method.train()

    def _evaluate(self) -> None:
        """Score on the first process, and keep the checkpoint if it is the best so far."""
        if self.processes.first and self.evaluate is not None:
            with self._shown():
                scores = self.evaluate(self.method, self.step)
                self._log(scores)
                if self.board is not None and self.pictures is not None:
                    self.board.pictures(self.pictures(), self.step)
                if self.config.select != "last":
                    self._keep(scores)
        self.processes.wait()

    def _keep(self, scores: Mapping[str, float]) -> None:
        if self.config.select not in scores:
            raise InputError(f"train.select: {self.config.select!r} is not evaluated; "
                             f"{nearest(self.config.select, scores)}")  # fmt: skip
        value = float(scores[self.config.select])
        if self.best is None or value > self.best["value"]:
            self.best = {"step": self.step, "value": value, "metric": self.config.select}
            self._checkpoint("best")

    def _checkpoint(self, name: str) -> Path:
        cost = self.cost.measure(self.backbone.device)
        details = {"steps": self.step, "run": self.identity, "selected": self.best, "cost": cost}
        details |= left_out(self.source)
        return checkpoint.save(self.folder.path / name, self.method, self.backbone, details)

    def _save(self) -> None:
        """Write a snapshot of everything the next step depends on."""
        if self.processes.first:
            if self.board is not None:
                self.board.flush()
            cost = self.cost.measure(self.backbone.device)
            state = {"best": self.best, "scaler": self.scaler.state_dict(), "cost": cost}
            self.folder.write_snapshot(
                Snapshot(self.step, pack(self.named, self.optimizer, self.average, self.method), state)
            )
        self.processes.wait()

    def _load(self, snapshot: Snapshot) -> None:
        """Take the state of a snapshot."""
        unpack(snapshot.tensors, self.named, self.optimizer, self.average, self.method)
        self.scaler.load_state_dict(snapshot.state["scaler"])
        self.step, self.best = snapshot.step, snapshot.state["best"]
        self.cost.resume(snapshot.state.get("cost", snapshot.state))

    def _log(self, values: Mapping[str, float]) -> None:
        """Add a line to the history and to TensorBoard, on the process that keeps them."""
        if self.board is not None:
            self.folder.log({"step": self.step, **values})
            self.board.scalars(values, self.step)

    def _finish(self) -> TrainResult:
        """Leave the last checkpoint, and the selected one's weights in the method."""
        last, best = self.folder.path / "last", self.folder.path / "best"
        chosen = last if self.config.select == "last" else best
        if self.processes.first:
            with self._shown():
                self._checkpoint("last")
        cost = self.cost.measure(self.backbone.device)
        self.processes.wait()
        checkpoint.restore(chosen, self.method)
        self.method.eval()
        return TrainResult(
            steps=self.step,
            seconds=self.cost.seconds,
            peak_mb=self.cost.peak_mb,
            cost=cost,
            checkpoint=chosen,
            history=self.folder.history,
            source=self.source_id,
            trained=tuple(counts(self.method)),
            best=self.best,
        )
