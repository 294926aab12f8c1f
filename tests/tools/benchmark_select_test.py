import json

from tools import benchmark_select


def test_all_sizes_are_selected_and_duckdb_agrees(capsys):
    benchmark_select.main(["--rows=20000", "--classes=7", "--rows_per_file=6000"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["sizes"]) == ["200", "2000", "20000"]
    assert all(size["duckdb_agrees"] for size in result["sizes"].values())
    assert result["rows_per_second"] > 0 and result["peak_rss_bytes"] > 2**20


def test_duckdb_is_optional(capsys):
    benchmark_select.main(["--rows=1000", "--classes=7", "--duckdb_rows=0"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "duckdb_agrees" not in result["sizes"]["1000"]
