"""Results of a run: collected once, shown on the terminal and in TensorBoard."""
