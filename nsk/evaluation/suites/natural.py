"""The suite `natural`: accuracy on other test sets, with all or some of the classes."""


def evaluate(predictor, splits, folder, **settings):
    """Being written."""
    raise NotImplementedError
