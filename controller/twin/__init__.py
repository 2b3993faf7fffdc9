"""The simulated network: production deciders and device cores on fake time, from one seed."""
