"""What a published number means, one file per benchmark: who competes, which cuts, which denominator, versioned."""

from cir.protocols.base import Protocol, mean_over, pooled
from cir.protocols.circo import CIRCO
from cir.protocols.cirr import CIRR
from cir.protocols.fashioniq import FashionIQ, FashionIQUnion

PROTOCOLS: dict[str, Protocol] = {
    "fashioniq/original": FashionIQ(),
    "fashioniq/val-union": FashionIQUnion(),
    "cirr": CIRR(),
    "circo": CIRCO(),
}

__all__ = ["PROTOCOLS", "Protocol", "mean_over", "pooled"]
