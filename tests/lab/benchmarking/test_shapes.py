from preconditioned_attention.lab.benchmarking.shapes import SHAPES


def test_names_are_unique_and_the_promised_lengths_are_there() -> None:
    assert len({shape.name for shape in SHAPES}) == len(SHAPES)
    assert {49, 197, 1024, 4096, 16384, 1} <= {shape.length for shape in SHAPES}
