"""The table of operations, and the HTTP API that is made from it."""
