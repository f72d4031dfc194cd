"""Training objectives: pure functions, tensors in, scalar out; computed in float32 whatever the towers use."""

from cir.objectives.alignment import cosine, mse
from cir.objectives.contrastive import clip_ce, info_nce, nt_xent
from cir.objectives.gather import gather
from cir.objectives.memory import Memory
from cir.objectives.similarity import max_similarity

__all__ = ["Memory", "clip_ce", "cosine", "gather", "info_nce", "max_similarity", "mse", "nt_xent"]
