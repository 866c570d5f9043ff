import dataclasses

from preconditioned_attention.lab.benchmarking.attention import Row
from preconditioned_attention.lab.benchmarking.report import make_plot, make_table

PLAIN = Row(
    shape="vit-b", batch=1, heads=2, length=3, keys=3, head_dim=4, dtype="float32", mode="eager", measured="forward",
    candidate="plain", turns=7, median_ms=1.25, ratio_p20=1.0, ratio_p50=1.0, ratio_p80=1.0, saved_bytes=12_345,
    peak_bytes=None,
)  # fmt: skip
FULL = dataclasses.replace(PLAIN, candidate="full", ratio_p20=1.01, ratio_p50=1.0349, ratio_p80=1.1, saved_bytes=None)


def test_a_line_for_each_measurement() -> None:
    table = make_table([PLAIN, FULL])
    assert table.rows[0][-5:] == ("1.25", "1.000", "1.000", "1.000", "12,345")
    assert table.rows[1][:5] == ("vit-b", "float32", "eager", "forward", "full")
    assert table.rows[1][-4:] == ("1.010", "1.035", "1.100", "")


def test_the_plot_is_a_png() -> None:
    assert make_plot([PLAIN, FULL]).startswith(b"\x89PNG")
