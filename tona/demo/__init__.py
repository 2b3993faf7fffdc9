"""The demonstration: a whole cell on this machine, real images, one device agent killed."""
