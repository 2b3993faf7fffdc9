"""Who serves a node: whether it moves, when, where to, and whether it is told or decides itself."""
