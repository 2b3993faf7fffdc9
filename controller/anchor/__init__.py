"""The Task Anchor (TA): owns each task's life, grants it an envelope of nodes and epochs."""
