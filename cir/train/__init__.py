"""Training: one loop for every method that learns, resumable to the bit."""

from cir.train.loop import Evaluate, TrainResult, train
from cir.train.stopping import Stopped

__all__ = ["Evaluate", "Stopped", "TrainResult", "train"]
