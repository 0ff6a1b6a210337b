"""Phase hooks and post-processors, which know nothing of a bus, as consumers."""
