"""One file per family; :mod:`mindcv_reparam.registry` imports the one it needs."""
