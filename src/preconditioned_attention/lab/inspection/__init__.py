"""A look into a model: what a conversion would do, and how well conditioned every head is, as numbers and a page."""

from .checkpoint import load_checkpoint
from .inputs import Inputs, make_inputs
from .measurement import Head, Inspection, measure_model, refuse_large
from .page import build_page, layer_table
from .words import summary

__all__ = [
    "Head",
    "Inputs",
    "Inspection",
    "build_page",
    "layer_table",
    "load_checkpoint",
    "make_inputs",
    "measure_model",
    "refuse_large",
    "summary",
]
