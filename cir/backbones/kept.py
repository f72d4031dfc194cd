"""What preparing a training run computes, kept on disk: `cir.methods.base.Store` over the feature cache."""

from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
from jaxtyping import Shaped

from cir.backbones.base import BackboneLike
from cir.backbones.store import CacheKey, FeatureCache


class KeptRows:
    """Rows by what they depend on, in the folder of the feature cache, beside the backbone's image features.

    An entry is made once, by one process while others wait for it, goes on where a killed one stopped, and is served
    as a read-only memory map. Its key is the backbone (weights, dtype), `kind` and `identity`.
    """

    def __init__(self, cache: FeatureCache, backbone: BackboneLike) -> None:
        self.cache = cache
        self.backbone = backbone

    def rows(
        self, kind: str, identity: Sequence[str], count: int, compute: Callable[[int], Iterator[np.ndarray]]
    ) -> Shaped[np.ndarray, "n ..."]:
        """Return `count` rows of any shape and type; `compute(start)` yields blocks of them from row `start` on.

        A computation that was interrupted is asked to go on from the end of a block it yielded. Raises `RunError`
        where rows are not finite, where their number is wrong, or where the disk does not take them.
        """
        dtype = str(self.backbone.dtype).removeprefix("torch.")
        name = kind.replace(" ", "-")  # it becomes part of a file name
        key = CacheKey(self.backbone.fingerprint, "", dtype, name, count=count, identity=tuple(identity))

        def blocks(start: int) -> Generator[np.ndarray, None, None]:
            yield from compute(start)

        return self.cache.keep(key, blocks)
