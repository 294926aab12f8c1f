"""nsk: Noisy Student self-training with TensorFlow and Keras."""

__version__ = "0.1.0"
