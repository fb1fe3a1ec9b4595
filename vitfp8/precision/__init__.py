"""The rooms of low precision: formats, scaling recipes, the three products of a linear layer."""
