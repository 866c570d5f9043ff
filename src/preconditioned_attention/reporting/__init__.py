"""Tables, plots and self-contained HTML pages. Knows numbers and words, and nothing else of this package."""

from .html import Callout, Figures, Page, Picture, Section, Text, render_html
from .plots import Curve, LayerPoints, Ratio, SeedInterval, plot_bands, plot_intervals, plot_layers, plot_ratios
from .tables import Table, decimals_for, format_number, print_table

__all__ = [
    "Callout",
    "Curve",
    "Figures",
    "LayerPoints",
    "Page",
    "Picture",
    "Ratio",
    "Section",
    "SeedInterval",
    "Table",
    "Text",
    "decimals_for",
    "format_number",
    "plot_bands",
    "plot_intervals",
    "plot_layers",
    "plot_ratios",
    "print_table",
    "render_html",
]
