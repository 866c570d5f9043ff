from preconditioned_attention.lab.comparison import Outcome, Plan, RunMetrics
from preconditioned_attention.lab.comparison.page import TONES, build_page, how_to_read
from preconditioned_attention.lab.comparison.summary import summarize
from preconditioned_attention.lab.comparison.verdict import make_verdicts
from preconditioned_attention.lab.reporting import Picture
from tests.helpers.synthetic_runs import ARMS, conditioning, make_records

PLAN = Plan(arms=ARMS, seeds=(0, 1), learning_rates=(1e-3,))


def titles(**values) -> list[str]:
    """The titles of the sections if every run reports ``values``, or fails."""
    metrics = values["fails"] if "fails" in values else RunMetrics(validation=1.0, test=1.0, **values)
    records = make_records(PLAN, {(key.arm, key.seed, key.learning_rate): metrics for key in PLAN.run_keys()})
    summaries = summarize(PLAN, records)
    runs = {name: [] if isinstance(metrics, str) else [metrics] * 2 for name in ARMS}
    pictures = {"training-loss": Picture(b"png", "d", "c")} if values.get("losses") else {}
    verdicts = make_verdicts(PLAN, summaries)
    page = build_page(PLAN, summaries, verdicts, runs, pictures, title="t", environment={"cpu": "x"})
    assert page.subtitle == "arms × seeds × learning rates: 3 × 2 × 1 = 6 runs"
    return [section.title for section in page.sections]


def test_sections_without_content_are_left_out():
    assert titles() == [
        "Findings",
        "Results",
        "Choice of the learning rate",
        "How to read this",
        "Every seed",
        "Settings",
    ]
    assert "Failed runs" in titles(fails="no memory")
    assert "Curves" in titles(losses=[1.0])
    assert {"Condition numbers", "Every layer"} <= set(titles(conditioning=conditioning()))


def test_pictures_of_the_arms_stand_side_by_side():
    def run(name):
        return RunMetrics(validation=1.0, test=1.0, pictures={"detections": Picture(b"png", f"of {name}", "caption")})

    runs = {name: [run(name), run("the second seed")] for name in ARMS}
    records = make_records(PLAN, {(key.arm, key.seed, key.learning_rate): run(key.arm) for key in PLAN.run_keys()})
    summaries = summarize(PLAN, records)
    page = build_page(PLAN, summaries, make_verdicts(PLAN, summaries), runs, {}, title="t", environment={"cpu": "x"})
    (section,) = (section for section in page.sections if section.title == "Model outputs")
    (figures,) = section.blocks
    assert [picture.description for picture in figures.pictures] == [f"{name}: of {name}" for name in ARMS]


def test_every_outcome_has_a_tone():
    assert set(TONES) == set(Outcome)


def test_reading_help_follows_the_direction_of_the_metric():
    lower = Plan(**{**vars(PLAN), "higher_is_better": False, "metric": "perplexity"})
    assert "perplexity (lower is better)" in how_to_read(lower).terms[1][1]
    assert "accuracy (higher is better)" in how_to_read(PLAN).terms[1][1]


def test_what_the_arms_write_stands_below_each_other():
    def run(name):
        return RunMetrics(validation=1.0, test=1.0, extra={"samples": {"from nothing": f"text of {name}"}})

    runs = {name: [run(name), run("the second seed")] for name in ARMS}
    records = make_records(PLAN, {(key.arm, key.seed, key.learning_rate): run(key.arm) for key in PLAN.run_keys()})
    summaries = summarize(PLAN, records)
    page = build_page(PLAN, summaries, make_verdicts(PLAN, summaries), runs, {}, title="t", environment={"cpu": "x"})
    (section,) = (section for section in page.sections if section.title == "Model outputs")
    (listing,) = section.blocks
    assert listing.items == tuple((f"{name}, first seed, from nothing", f"text of {name}") for name in ARMS)


def test_reading_help_says_which_weights_are_tested():
    best = Plan(**{**vars(PLAN), "settings": {"keep_best": True}})
    assert [name for name, _ in how_to_read(best).terms if name == "Weights"] == ["Weights"]
    assert "best validation accuracy" in dict(how_to_read(best).terms)["Weights"]
    assert "Weights" not in dict(how_to_read(PLAN).terms)
