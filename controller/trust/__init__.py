"""The local authority: who may speak in a cell, and who may no longer."""
