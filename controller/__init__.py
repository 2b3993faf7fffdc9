"""The gateway: the three layers of the TONA network and the shells around them."""
