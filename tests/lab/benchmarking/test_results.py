import csv
import io

from preconditioned_attention.lab.benchmarking.attention import Row
from preconditioned_attention.lab.benchmarking.results import rows_to_csv


def test_every_line_says_where_it_comes_from() -> None:
    row = Row(
        shape="s", batch=1, heads=2, length=3, keys=4, head_dim=5, dtype="float32", mode="eager", measured="forward",
        candidate="full", turns=7, median_ms=1.25, ratio_p20=0.9, ratio_p50=1.0, ratio_p80=1.1, saved_bytes=None,
        peak_bytes=123,
    )  # fmt: skip
    (line,) = csv.DictReader(io.StringIO(rows_to_csv([row], allocator="default")))
    assert (line["shape"], line["median_ms"], line["saved_bytes"], line["peak_bytes"]) == ("s", "1.25", "", "123")
    assert all(line[name] for name in ("date", "python", "cpu", "threads", "torch", "package", "allocator"))
