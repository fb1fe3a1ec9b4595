"""vitfp8: what low precision costs a Vision Transformer, measured in notebooks."""
