"""One file per layout of annotation tools and other projects, each with its `READER`; see docs/write-a-reader.md.

A file here is found by its being here: `registry.py` imports them all.
"""
