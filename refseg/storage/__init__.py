"""Reads, lists, publishes and removes files in a folder, which is local, at any fsspec URL, or in a ZIP archive.

folder      defines a folder, and has the one of this machine's file systems
remote      is a folder at an fsspec URL, such as an object store
web         is a folder on a web server, which can only be read
archive     is a folder in a ZIP archive, which can only be read
opening     chooses one of these by the address, and opens single files
"""

from refseg.addresses import is_remote, whole_address
from refseg.storage.folder import Folder, LocalFolder
from refseg.storage.opening import FolderFile, archive_as_folder, open_file, open_folder, read_file, split_address
from refseg.storage.remote import RemoteFolder
from refseg.storage.web import WebFolder

__all__ = [
    "Folder",
    "FolderFile",
    "LocalFolder",
    "RemoteFolder",
    "WebFolder",
    "archive_as_folder",
    "is_remote",
    "open_file",
    "open_folder",
    "read_file",
    "split_address",
    "whole_address",
]
