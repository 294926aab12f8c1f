"""The settings of a run: what a setting is, one module per section, and `Config`."""
