"""The families of models, BEiT-3 and CLIP: names, modules, weights, and what they make of an example."""
