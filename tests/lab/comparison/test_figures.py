import math

import pytest

from preconditioned_attention.lab.comparison import Plan, RunMetrics, figures
from preconditioned_attention.lab.comparison.figures import conditioning_by_layer, draw_figures
from preconditioned_attention.lab.comparison.summary import summarize
from tests.helpers.synthetic_runs import ARMS, conditioning, make_records

PLAN = Plan(arms={"plain": None, "row": ARMS["row"]}, seeds=(0, 1), learning_rates=(1e-3,))


def drawn(plan: Plan = PLAN, **values) -> set[str]:
    """The names of the plots if every run reports ``values``."""
    metrics = RunMetrics.from_returned({"validation": 1.0, "test": 1.0} | values, metric="accuracy")
    records = make_records(plan, {(key.arm, key.seed, key.learning_rate): metrics for key in plan.run_keys()})
    return set(draw_figures(plan, summarize(plan, records), {name: [metrics, metrics] for name in plan.arms}))


def test_only_what_was_measured_is_drawn():
    assert drawn() == {"difference"}
    assert drawn(losses=[2.0, 1.0]) == {"difference", "training-loss"}
    assert drawn(evaluations=[{"step": 1, "accuracy": 0.5}]) == {"difference", "validation"}
    one_moment = [row for row in conditioning() if row["moment"] == "end"]
    assert drawn(conditioning=one_moment) == {"difference", "kappa-end", "spread-end"}
    assert drawn(Plan(arms={"plain": None}, seeds=(0,), learning_rates=(1e-3,))) == set()


def test_curves_carry_the_runs_numbers(monkeypatch):
    shown = {}
    monkeypatch.setattr(
        figures, "plot_bands", lambda curves, **options: shown.update({options["title"]: (curves, options)}) or b""
    )
    drawn(losses=[4.0, 2.0, -1.0], evaluations=[{"step": 1, "accuracy": 0.5}, {"step": 3, "accuracy": 0.75}])
    loss, options = shown["Training loss"]
    assert [(curve.label, curve.style) for curve in loss] == [
        ("plain (learning rate 0.001)", 0),
        ("row (learning rate 0.001)", 1),
    ]
    assert loss[0].x == [1, 2, 3]
    assert loss[0].y_per_seed == [[4.0, 2.0, -1.0]] * 2
    assert not options["log_y"], "a logarithmic axis has no place for a negative loss"
    validation, _ = shown["Validation accuracy"]
    assert validation[1].x == [1, 3]
    assert validation[1].y_per_seed == [[0.5, 0.75]] * 2


def test_layers_are_medians_over_seeds_in_the_order_of_the_model():
    runs = [RunMetrics(validation=1, test=1, conditioning=conditioning(scale)) for scale in (1.0, 3.0, math.inf)]
    layers = conditioning_by_layer(runs, "end")
    assert list(layers) == ["blocks.0.attn", "blocks.1.attn"]
    assert layers["blocks.1.attn"] == pytest.approx(
        {"kappa_before": 303.0, "kappa_after": 213.0, "spread_before": 0.26, "spread_after": 0.0}
    )


def test_infinity_read_back_from_a_file_is_a_number_again():
    row = conditioning()[2] | {"kappa_before": "inf", "kappa_after": "nan"}
    numbers = conditioning_by_layer([RunMetrics(validation=1, test=1, conditioning=[row])], "end")["blocks.0.attn"]
    assert numbers["kappa_before"] == math.inf
    assert math.isnan(numbers["kappa_after"])


def during(scale: float = 1.0, steps: tuple[int, ...] = (1, 26)) -> list[dict]:
    rows = [row for row in conditioning(scale) if row["moment"] == "end"]
    return [{**row, "moment": "training", "step": step} for step in steps for row in rows]


def test_kappa_over_training_is_drawn_like_an_inspection(monkeypatch):
    shown = {}

    def record(name):
        return lambda data, **options: shown.update({name: (data, options)}) or b""

    for name in ("plot_bands", "plot_heat_maps"):
        monkeypatch.setattr(figures, name, record(name))
    rows = during()
    rows[3]["kappa_before"] = rows[3]["kappa_after"] = math.inf  # the second layer at the second step
    assert drawn(conditioning=rows) == {"difference", "kappa-training", "kappa-training-layers"}
    curves, options = shown["plot_bands"]
    assert [(curve.label, curve.style) for curve in curves] == [("plain", 0), ("row", 1)]
    assert curves[0].x == [1, 26]
    assert curves[0].y_per_seed == [[100.5, 100.0]] * 2
    assert options["log_y"]
    maps, options = shown["plot_heat_maps"]
    assert [one.title for one in maps] == ["plain", "row"]
    assert maps[0].values[0] == [70.0, 70.0]
    assert maps[0].values[1][0] == 71.0
    assert math.isnan(maps[0].values[1][1])
    assert (options["row_labels"], options["column_labels"]) == (["blocks.0.attn", "blocks.1.attn"], [1, 26])


def test_runs_recorded_at_other_steps_are_not_averaged():
    runs = [RunMetrics(validation=1, test=1, conditioning=during(steps=steps)) for steps in ((1, 26), (1, 30))]
    assert figures._kappa_over_training({"plain": runs}) is None
    assert figures._kappa_over_training({"plain": runs[:1]}) is not None


def test_what_is_singular_throughout_is_not_drawn():
    """Matplotlib refuses a logarithmic axis without a finite value."""
    rows = [{**row, "kappa_before": math.inf, "kappa_after": math.inf} for row in during()]
    runs = {"plain": [RunMetrics(validation=1, test=1, conditioning=rows)]}
    assert figures._kappa_over_training(runs) is None
    assert figures._kappa_of_layers_over_training(runs) is None
