"""Gateways and nodes on one machine, each in a network of its own; radio traces move the nodes."""
