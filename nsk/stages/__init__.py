"""The stages, one module each: what a stage depends on and how it is built."""
