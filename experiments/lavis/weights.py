"""Weights as a function of their name, the same with any numpy: LAVIS's side and ours need not hand them over.

Integer arithmetic (splitmix64 of position and name) gives uniform numbers that float32 holds exactly.
"""

import zlib

import numpy as np

SMALL = ("cls_token", "pos_embed", "patch_embed.proj", "attn.proj", "mlp.fc2")
"""Parts of EVA that are made small, so that its tokens spread little and the epsilon of `ln_vision` is seen."""
TEMPERATURE = 0.0625


def uniform(name, shape):
    """Numbers in [-1, 1), float32."""
    with np.errstate(over="ignore"):
        x = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 32)
        x = x * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(41)).astype(np.float32).reshape(shape) / np.float32(2**22) - np.float32(1)


def weight(name, shape):
    """A weight of LAVIS's `Blip2Qformer` by its name: every one different, norms and biases included."""
    values = uniform(name, shape)
    if name == "temp":
        return np.full(shape, TEMPERATURE, dtype=np.float32)
    if len(shape) == 1:
        values = values * np.float32(0.375) + np.float32(name.endswith("weight"))
    elif "embeddings" in name or "token" in name:
        values = values * np.float32(0.75)
    else:
        values = values * np.float32((3 / np.prod(shape[1:])) ** 0.5)
    return values * np.float32(0.0625 if name.startswith("visual_encoder") and any(s in name for s in SMALL) else 1)
