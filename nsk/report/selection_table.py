from nsk.report.terminal import print_selection as report  # ALIAS  # noqa: F401
