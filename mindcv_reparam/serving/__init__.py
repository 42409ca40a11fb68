"""An HTTP server for bundles: the Open Inference Protocol v2, and image files.

``protocol`` reads requests and writes responses, ``model`` is a bundle ready to run, ``batcher`` runs requests of
several clients together, ``app`` routes, ``limits`` bounds what a client may ask of it, ``server`` is the process.
"""
