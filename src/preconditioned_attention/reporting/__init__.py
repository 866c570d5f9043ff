"""Tables, plots and self-contained HTML pages. Knows numbers and words, and nothing else of this package."""

from .html import Callout, Figures, Page, Picture, Section, Text, render_html
from .plots import Curve, LayerPoints, SeedInterval, plot_bands, plot_intervals, plot_layers
from .tables import Table, decimals_for, format_number, print_table

__all__ = [
    "Callout",
    "Curve",
    "Figures",
    "LayerPoints",
    "Page",
    "Picture",
    "Section",
    "SeedInterval",
    "Table",
    "Text",
    "decimals_for",
    "format_number",
    "plot_bands",
    "plot_intervals",
    "plot_layers",
    "print_table",
    "render_html",
]
