from nsk.report.collect import read_truth  # ALIAS  # noqa: F401
from nsk.report.run_report import report_run as report  # ALIAS  # noqa: F401
from nsk.report.terminal import closing_table  # ALIAS  # noqa: F401
