"""`refseg report`: writes one self-contained page of scores, curves and examples of one run or several."""

import argparse

from refseg.cli.options import add_options, given
from refseg.exits import print_next

EXAMPLE = """refseg evaluate runs/toy --split val --save-predictions
  refseg report runs/toy --out report.html
  refseg report runs/toy runs/other --out comparison.html"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.evaluation.options import ReportOptions

    add_options(parser, ReportOptions, positional=("runs",), runs={"metavar": "RUN"}, out={"metavar": "FILE.html"})


def run(args: argparse.Namespace) -> int:
    from refseg.apps.report_runs import report_runs
    from refseg.evaluation.options import ReportOptions

    page, markdown = report_runs(ReportOptions(**given(args, ReportOptions)))
    print(f"{page}\n{markdown}")
    print_next("python", "-m", "webbrowser", page.resolve())
    return 0
