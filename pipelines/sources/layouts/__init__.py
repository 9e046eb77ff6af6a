"""Contains one module with a `READER` per layout of annotation tools and other projects.

`registry.py` imports all modules of this package, so a new module needs no registration. `docs/write-a-reader.md`
explains how to write one.
"""
