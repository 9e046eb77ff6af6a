"""One module per layout of annotation tools and other projects, each with a `READER`.

`registry.py` imports all modules of this package, so a new module needs no registration. `docs/write-a-reader.md`
explains how to write one.
"""
