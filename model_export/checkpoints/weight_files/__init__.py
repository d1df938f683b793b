"""Files of weights to tensors, without running their code."""
