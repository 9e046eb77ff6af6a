"""Offline and torch-free: annotations to records to manifests to shards."""
