"""Artifacts and large values on the node: kept by digest, moved by a process of its own."""
