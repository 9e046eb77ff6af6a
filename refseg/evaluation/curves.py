"""Lays out curves over training steps for SVG. Computes paths, axis ticks and a text description."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 340, 200
"""Size of the drawing in SVG units."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 34
_MAX_POINTS = 240
"""Largest number of points of a curve; more cannot be distinguished at this width."""

_Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve of a chart.

    Attributes:
        name: Name of the curve in the legend.
        path: SVG path data.
        dots: `(x, y, text)` of each point. Empty if the curve has many points.
    """

    name: str
    path: str
    dots: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Everything a template needs to draw one chart.

    Attributes:
        title: Title of the chart.
        description: Description of the curves in words, for screen readers.
        lines: The curves.
        x_ticks: Position and text of each tick of the x axis.
        y_ticks: Position and text of each tick of the y axis.
        left: Left edge of the plot in SVG units.
        right: Right edge of the plot in SVG units.
        top: Upper edge of the plot in SVG units.
        bottom: Lower edge of the plot in SVG units.
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
    """Lay out curves over a shared axis of steps. Both axes start at 0.

    Args:
        title: Title of the chart.
        curves: Points `(step, value)` of each curve in the order of the steps, by the name of the curve.
        percent: True if values are fractions that are shown as percent.

    Returns:
        The chart, or None if there are no finite values.
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

    def to_svg(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + step / max(last_step, 1) * (WIDTH - _LEFT - _RIGHT)
        y = HEIGHT - _BOTTOM - value / y_values[-1] * (HEIGHT - _TOP - _BOTTOM)
        return round(x, 1), round(y, 1)

    def format_value(value: float) -> str:
        return f"{100 * value:.1f} %" if percent else f"{value:.3g}"

    lines = tuple(
        Line(
            name=name,
            path="M" + "L".join(f"{x} {y}" for x, y in (to_svg(*point) for point in points)),
            dots=tuple((*to_svg(step, value), f"step {step:g}: {format_value(value)}") for step, value in points)
            if len(points) <= 20
            else (),
        )
        for name, points in finite.items()
    )
    return Chart(
        title=title,
        description="; ".join(
            f"{name} from {format_value(first)} at step {start:g} to {format_value(last)} at step {end:g}"
            for name, ((start, first), *_, (end, last)) in ((name, [*p[:1], *p[-1:]]) for name, p in finite.items())
        ),
        lines=lines,
        x_ticks=tuple((to_svg(step, 0.0)[0], _short(step)) for step in x_values),
        y_ticks=tuple((to_svg(0.0, y)[1], f"{100 * y:g}" if percent else _short(y)) for y in y_values),
    )


def _ticks(highest: float) -> list[float]:
    """Return three to six round values from 0 to at least `highest`. For 0.7 they are 0, 0.2, 0.4, 0.6 and 0.8."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return [round(number * step, 12) for number in range(math.ceil(highest / step * (1 - 1e-9)) + 1)]


def _thin(points: _Points) -> _Points:
    """Reduce a curve to at most `_MAX_POINTS` points by averaging groups of consecutive points.

    The mean of a group is placed at the last step of the group.
    """
    if len(points) <= _MAX_POINTS:
        return points
    size = math.ceil(len(points) / _MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], math.fsum(value for _, value in group) / len(group)) for group in groups]


def _short(value: float) -> str:
    if value >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:.3g}".replace("e-0", "e-")
