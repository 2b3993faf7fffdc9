"""What every benchmark shares: reports, processes, what the kernel says of them, a cell."""
