"""Inspection of a model: a conversion report, and condition numbers of every head, as a table and a page."""

from .checkpoint import load_checkpoint
from .findings import summary
from .inputs import Inputs, make_inputs
from .measurement import Head, Inspection, check_size, measure_model
from .page import build_page, layer_table

__all__ = [
    "Head",
    "Inputs",
    "Inspection",
    "build_page",
    "check_size",
    "layer_table",
    "load_checkpoint",
    "make_inputs",
    "measure_model",
    "summary",
]
