"""Tables, plots and HTML pages, made from numbers and strings alone."""

from .html import Callout, Figures, Listing, Page, Picture, Section, Text, render_html
from .plots import (
    Curve,
    HeatMap,
    LayerPoints,
    Profile,
    Ratio,
    SeedInterval,
    heat_limits,
    plot_bands,
    plot_heat_maps,
    plot_intervals,
    plot_layers,
    plot_profiles,
    plot_ratios,
)
from .tables import Table, decimals_for, format_number, print_table

__all__ = [
    "Callout",
    "Curve",
    "Figures",
    "HeatMap",
    "LayerPoints",
    "Listing",
    "Page",
    "Picture",
    "Profile",
    "Ratio",
    "Section",
    "SeedInterval",
    "Table",
    "Text",
    "decimals_for",
    "format_number",
    "heat_limits",
    "plot_bands",
    "plot_heat_maps",
    "plot_intervals",
    "plot_layers",
    "plot_profiles",
    "plot_ratios",
    "print_table",
    "render_html",
]
