"""BEiT-3: the Multiway Transformer, its heads, its weights."""
