import torch

from preconditioned_attention.conversion import plan_conversion
from preconditioned_attention.lab.inspection.conversion_table import conversion_table


def test_modules_that_differ_in_their_path_share_a_line() -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    table = conversion_table("encoder", plan_conversion(torch.nn.TransformerEncoder(layer, 3)))
    ((paths, *cells),) = table.rows
    assert paths == "layers.0.self_attn and 2 more"
    assert {"2", "4", "converted"} <= set(cells)
    assert table.note == "3 of 3 attention modules would be converted."


def test_the_model_itself() -> None:
    table = conversion_table("attention", plan_conversion(torch.nn.MultiheadAttention(8, 2)))
    assert table.rows[0][0] == "(the model itself)"
