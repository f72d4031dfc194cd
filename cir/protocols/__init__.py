"""What a published number means, one file per benchmark: who competes, which cuts, which denominator, versioned."""

from cir.protocols.base import Protocol, mean_over, pooled
from cir.protocols.circo import CIRCO, CIRCOReferenceRemoved
from cir.protocols.cirr import CIRR, CIRRCoVR, CIRRFolder, CIRRSoft
from cir.protocols.coco import COCO
from cir.protocols.custom import Custom, CustomCandidates, CustomReferenceRemoved
from cir.protocols.fashioniq import FashionIQ, FashionIQReferenceRemoved, FashionIQUnion
from cir.protocols.freedom import FreeDom
from cir.protocols.genecis import GeneCIS, GeneCISReleased
from cir.protocols.imagenet_r import ImageNetRHit, ImageNetRShare
from cir.protocols.mbeir import MBEIRGlobal, MBEIRGlobalImages, MBEIRLocal, MBEIRLocalInstructed
from cir.protocols.patterncom import PatternCom

PROTOCOLS: dict[str, Protocol] = {
    "fashioniq/original": FashionIQ(),
    "fashioniq/val-union": FashionIQUnion(),
    "fashioniq/reference-removed": FashionIQReferenceRemoved(),
    "cirr": CIRR(),
    "cirr/soft": CIRRSoft(),
    "cirr/folder": CIRRFolder(),
    "cirr/covr": CIRRCoVR(),
    "circo": CIRCO(),
    "circo/reference-removed": CIRCOReferenceRemoved(),
    "genecis": GeneCIS(),
    "genecis/lincir-released": GeneCISReleased(),
    "coco": COCO(),
    "patterncom": PatternCom(),
    "imagenet_r/share": ImageNetRShare(),
    "imagenet_r/hit": ImageNetRHit(),
    "freedom": FreeDom(),
    "custom": Custom(),
    "custom/reference-removed": CustomReferenceRemoved(),
    "custom/candidates": CustomCandidates(),
    "mbeir/local": MBEIRLocal(),
    "mbeir/local-instructed": MBEIRLocalInstructed(),
    "mbeir/global": MBEIRGlobal(),
    "mbeir/global-images": MBEIRGlobalImages(),
}

__all__ = ["PROTOCOLS", "Protocol", "mean_over", "pooled"]
