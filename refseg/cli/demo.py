"""`refseg demo`: serves a local web page that segments what an expression names in a picture."""

import argparse

from refseg.apps.options import DemoOptions
from refseg.cli.options import add_options, given
from refseg.errors import UsageError

EXAMPLE = "refseg demo --checkpoint runs/toy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(
        parser, DemoOptions, checkpoint={"metavar": "RUN"}, host={"metavar": "ADDRESS"}, port={"metavar": "PORT"}
    )


def run(args: argparse.Namespace) -> int:
    try:
        from refseg.apps.demo_run import run_demo
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "h11", "starlette", "multipart", "python_multipart"):
            raise
        raise UsageError(
            f"refseg demo: the package {error.name} is not installed; pip install 'refseg[demo]'"
        ) from error

    run_demo(
        DemoOptions(**given(args, DemoOptions)),
        ready=lambda address: print(f"open {address}  (stop with Ctrl-C)", flush=True),
    )
    return 0
