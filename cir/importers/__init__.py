"""Published checkpoints of the projection family, turned into this project's folders without running foreign code.

One file each: `formats` (what is published and how it is used), `containers` (files to tensors), `projectors` and
`towers` (tensors to checkpoints), `pickled` and `tokens` (OTI folders and phrase lists), `output` (the folder).
"""

from cir.importers.formats import FORMATS
from cir.importers.imported import Imported, import_checkpoint

__all__ = ["FORMATS", "Imported", "import_checkpoint"]
