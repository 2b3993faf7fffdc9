"""Benchmarks: `make bench NAME=footprint|invocation|reaction|ingest`; see README.md."""
