import math
import re
from dataclasses import replace

import pytest

from preconditioned_attention.lab.inspection import build_page, layer_table
from preconditioned_attention.lab.reporting import Table, render_html
from tests.helpers.inspection_models import head, inspection

CONVERSION = Table(title="it", columns=("modules",), rows=(("blocks.0.attn",),))
HEADS = (head(kappa_after=20.0, spread=0.5), head(head=1, kappa_before=math.nan, kappa_after=math.nan))


def page(*inspections) -> str:
    environment = {"python": "3", "packages": {"torch": "2", "timm": None}}
    return render_html(
        build_page("it", inspections, input_words="noise & more", conversion=CONVERSION, environment=environment)
    )


def test_is_whole_and_self_contained() -> None:
    html = page(inspection(*HEADS))
    assert "<script" not in html
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert html.count("<img") == 5  # kappa, spread, two profiles, entropy
    assert "noise &amp; more" in html
    assert "C divides kappa by 5, from 100 to 20" in html
    assert "A crossed cell" in html
    assert html.index("Where C helps most") < html.index("Singular values") < html.index("How to read this")


def test_two_stand_beside_each_other_with_the_same_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    from preconditioned_attention.lab.inspection import page as page_module

    limits, plot = [], page_module.plot_heat_maps
    monkeypatch.setattr(
        page_module, "plot_heat_maps", lambda maps, **options: limits.append(options["limits"]) or plot(maps, **options)
    )
    random = inspection(*HEADS, weights="random initialization")
    trained = inspection(*(replace(one, kappa_before=one.kappa_before * 30) for one in HEADS), weights="weights of w")
    html = page(random, trained)
    assert html.count("<img") == 10
    assert "Layer by head: random initialization" in html
    assert "Layer by head: weights of w" in html
    assert set(limits) == {(20.0, 3000.0), (0.0, 1.0), (2.0, 2.0)}


def test_entropy_that_is_not_available_says_why() -> None:
    reason = "channel attention has no softmax matrix over tokens"
    html = page(inspection(head(entropy=math.nan), no_entropy={"blocks.0.attn": reason}))
    assert f"Not available for blocks.0.attn: {reason}." in html
    assert html.count("<img") == 4


def test_the_table_for_the_terminal() -> None:
    table = layer_table("it", inspection(*HEADS, head(head=2, kappa_before=300.0)))
    assert table.rows == (("blocks.0.attn", "3", "17 x 8", "200", "60", "0.01", "0.5", "2"),)
    none = layer_table("it", inspection(HEADS[1]))
    assert none.rows[0][3:5] == ("–", "–")
