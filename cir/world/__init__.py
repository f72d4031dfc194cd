"""The bundled world: a procedural benchmark with exact ground truth, rebuilt from a seed.

Scenes of attributed objects, a renderer with nuisance variation, a caption grammar whose benchmark phrasings are
held out from every training text, and writers in the layouts of FashionIQ, CIRR and CIRCO.
"""
