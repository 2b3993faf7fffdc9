"""A whole cell on one machine: controller and device agents as children of one process."""
