import math

from refseg.evaluation.curves import draw_chart


def test_a_curve_runs_from_corner_to_corner_of_its_axes() -> None:
    chart = draw_chart("Loss", {"loss": [(0, 0.0), (100, 4.0)]})

    assert chart is not None
    assert chart.lines[0].path == f"M{chart.left:.1f} {chart.bottom:.1f}L{chart.right:.1f} {chart.top:.1f}"
    assert [text for _, text in chart.y_ticks] == ["0", "1", "2", "3", "4"]
    assert [text for _, text in chart.x_ticks] == ["0", "25", "50", "75", "100"]
    assert chart.description == "loss from 0 at step 0 to 4 at step 100"


def test_small_values_keep_ticks_that_can_be_told_apart() -> None:
    chart = draw_chart("Learning rate", {"lr": [(1, 1e-5), (4000, 1e-4)]})

    assert chart is not None
    assert [text for _, text in chart.y_ticks] == ["0", "2.5e-5", "5e-5", "7.5e-5", "0.0001"]
    assert [text for _, text in chart.x_ticks] == ["0", "1k", "2k", "3k", "4k"]


def test_what_is_no_number_is_left_out_and_nothing_makes_no_chart() -> None:
    chart = draw_chart("Loss", {"loss": [(1, 2.0), (2, math.nan), (3, math.inf)]})

    assert chart is not None
    assert len(chart.lines[0].dots) == 1
    assert draw_chart("Loss", {"loss": [(1, math.nan)]}) is None


def test_long_runs_are_thinned_by_means() -> None:
    chart = draw_chart("Loss", {"loss": [(step, float(step % 2)) for step in range(4_800)]})

    assert chart is not None
    assert chart.lines[0].path.count("L") < 240
    assert chart.description.startswith("loss from 0.5")
