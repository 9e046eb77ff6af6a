"""Curves over training steps, laid out for SVG: paths, ticks and a description in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 340, 200
"""Size of the drawing in SVG units."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 34
_MAX_POINTS = 240
"""More than this cannot be told apart at this width."""

_Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve of a chart.

    Attributes:
        name: For the legend.
        path: SVG path data.
        dots: `(x, y, text)` of each point; only where there are few.
    """

    name: str
    path: str
    dots: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Everything a template needs to draw one chart.

    Attributes:
        title: What is shown.
        description: The same in words, for those who do not see it.
        lines: Curves.
        x_ticks: `(x, text)`.
        y_ticks: `(y, text)`.
        left: Where the plot begins, in SVG units, as `right`, `top`, `bottom`.
        right: Where it ends.
        top: Its upper edge.
        bottom: Its lower edge.
    """

    title: str
    description: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def draw_chart(title: str, curves: dict[str, Sequence[tuple[int, float]]], *, percent: bool = False) -> Chart | None:
    """Lay out curves over a shared axis of steps; both axes start at 0.

    Args:
        title: What is shown.
        curves: By name: `(step, value)` in the order of the steps.
        percent: Values are fractions, shown as percent.

    Returns:
        None if no value is left once those that are not finite are left out.
    """
    finite = {
        name: _thin([(float(step), value) for step, value in points if math.isfinite(value)])
        for name, points in curves.items()
    }
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return None
    last_step = max(points[-1][0] for points in finite.values())
    y_values = _ticks(max(value for points in finite.values() for _, value in points))
    x_values = [step for step in _ticks(last_step) if step <= last_step]

    def place(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + step / max(last_step, 1) * (WIDTH - _LEFT - _RIGHT)
        y = HEIGHT - _BOTTOM - value / y_values[-1] * (HEIGHT - _TOP - _BOTTOM)
        return round(x, 1), round(y, 1)

    def say(value: float) -> str:
        return f"{100 * value:.1f} %" if percent else f"{value:.3g}"

    lines = tuple(
        Line(
            name=name,
            path="M" + "L".join(f"{x} {y}" for x, y in (place(*point) for point in points)),
            dots=tuple((*place(step, value), f"step {step:g}: {say(value)}") for step, value in points)
            if len(points) <= 20
            else (),
        )
        for name, points in finite.items()
    )
    return Chart(
        title=title,
        description="; ".join(
            f"{name} from {say(first)} at step {start:g} to {say(last)} at step {end:g}"
            for name, ((start, first), *_, (end, last)) in ((name, [*p[:1], *p[-1:]]) for name, p in finite.items())
        ),
        lines=lines,
        x_ticks=tuple((place(step, 0.0)[0], _short(step)) for step in x_values),
        y_ticks=tuple((place(0.0, y)[1], f"{100 * y:g}" if percent else _short(y)) for y in y_values),
    )


def _ticks(highest: float) -> list[float]:
    """Three to six round values from 0 to at least `highest`."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return [round(number * step, 12) for number in range(math.ceil(highest / step * (1 - 1e-9)) + 1)]


def _thin(points: _Points) -> _Points:
    """At most `_MAX_POINTS` points, each the mean of its neighbours; the first and last step keep their place."""
    if len(points) <= _MAX_POINTS:
        return points
    size = math.ceil(len(points) / _MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], math.fsum(value for _, value in group) / len(group)) for group in groups]


def _short(value: float) -> str:
    if value >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:.3g}".replace("e-0", "e-")
