"""How `refseg evaluate` and `refseg score` print scores."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refseg.evaluation.results import Results


def print_results(results: "Results", rows: Path | None) -> None:
    """Print scores of each protocol with their intervals and rules, and where the rows are."""
    from refseg.evaluation.bootstrap import confidence_intervals
    from refseg.evaluation.results import INTERVAL_RULE

    origin = results.origin
    print(f"{origin.scored_on}, {origin.subject}")
    for scores in (results.scores, *results.other_scores):
        print()
        intervals = confidence_intervals(results.rows, scores.protocol)
        for name, value in scores.by_name().items():
            low, high = intervals[name]
            if math.isnan(value):
                print(f"  {name:8}     –    no sentence counts for it")
            else:
                print(f"  {name:8}{100 * value:6.2f} %  [{100 * low:5.2f}, {100 * high:5.2f}]")
        print()
        for rule in (*scores.rules(), INTERVAL_RULE):
            print(f"  - {rule}")
    if said := origin.leak_warning or origin.leak_statement:
        print(f"  - {said}")
    if rows is not None:
        print()
        print(f"rows: {rows}")
