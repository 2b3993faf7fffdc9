"""Stories: one cause each, and what the three layers make of it, beside the same without them."""
