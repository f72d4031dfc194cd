"""Training objectives: pure functions, tensors in, scalar out; computed in float32 whatever the towers use."""

from cir.objectives.alignment import cosine, mse
from cir.objectives.contrastive import clip_ce, nt_xent
from cir.objectives.gather import gather
from cir.objectives.memory import Memory

__all__ = ["Memory", "clip_ce", "cosine", "gather", "mse", "nt_xent"]
