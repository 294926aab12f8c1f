"""What tests of evaluation share."""

import builtins

import pytest


@pytest.fixture
def without_pyav(monkeypatch):
    """PyAV, which reads videos, is not installed."""
    import_module = builtins.__import__

    def import_without_av(name, *arguments, **keywords):
        if name == "av":
            raise ImportError(name)
        return import_module(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", import_without_av)
