"""What runs inside executor processes, started by file path under an interpreter of choice.

Standard library, wasmtime, numpy and onnxruntime only; siblings are imported as top-level modules,
for the script's own folder is first on the path. Python 3.10 is enough: an interpreter may belong
to the board's vendor.
"""
