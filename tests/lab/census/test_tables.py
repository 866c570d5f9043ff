from preconditioned_attention.lab.census.sweep import OTHER, SOFTMAX, Finding
from preconditioned_attention.lab.census.tables import count_table, reason_table

FINDINGS = (
    Finding("timm", SOFTMAX, "vit", "exactly"),
    Finding("timm", SOFTMAX, "volo", "defined", "one row per window"),
    Finding("timm", SOFTMAX, "volo_d2", "defined", "one row per window"),
    Finding("timm", OTHER, "new_a", "unknown", "timm.models.New"),
    Finding("timm", OTHER, "new_b", "unknown", "timm.models.New"),
)


def test_counts() -> None:
    table = count_table(FINDINGS)
    assert table.columns[:6] == ("library", "what", "all", "exactly", "defined", "refused")
    assert [row[:6] for row in table.rows] == [
        ("timm", SOFTMAX, "3", "1", "2", "0"),
        ("timm", OTHER, "2", "0", "0", "0"),
    ]


def test_equal_reasons_share_a_line_but_for_what_is_unknown() -> None:
    assert reason_table(FINDINGS).rows == (
        ("timm", "defined", "one row per window", "2", "volo"),
        ("timm", "unknown", "timm.models.New (new_a)", "1", "new_a"),
        ("timm", "unknown", "timm.models.New (new_b)", "1", "new_b"),
    )
