from preconditioned_attention.conversion import ConversionEntry, ConversionReport


def entry(path: str, status: str, reason: str = "") -> ConversionEntry:
    return ConversionEntry(
        path=path, class_name="a.B", mechanism="pre-hook", num_heads=3, head_dim=None, status=status, reason=reason
    )


def test_table_shows_every_field_and_the_warning() -> None:
    text = str(ConversionReport((entry("x.attn", "converted"), entry("", "unknown", "nobody knows"))))
    lines = text.splitlines()
    assert lines[0].split() == ["path", "class", "mechanism", "heads", "head", "dim", "status", "reason"]
    assert lines[2].split() == ["x.attn", "a.B", "pre-hook", "3", "-", "converted"]
    assert lines[3].startswith("(the model itself)")
    assert lines[3].endswith("nobody knows")
    assert "1 of 2 attention modules converted." in text
    assert "Not function-preserving" in text


def test_groups() -> None:
    report = ConversionReport(tuple(entry(s, s) for s in ("converted", "skipped", "unsupported", "unknown")))
    assert [e.path for e in report.converted] == ["converted"]
    assert [e.path for e in report.left_out] == ["unsupported", "unknown"]
    assert "Not function-preserving" not in str(ConversionReport((entry("a", "skipped"),)))
