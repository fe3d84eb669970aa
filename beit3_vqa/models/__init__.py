"""BEiT-3: names, modules, weights, and what they make of an example."""
