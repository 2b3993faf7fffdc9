"""The daemon on every node: sensing, a pure core, executors."""
