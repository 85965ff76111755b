"""Guide programs."""
