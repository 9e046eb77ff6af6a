.PHONY: check fast quickstart format

check:  ## every check, as continuous integration runs it
	scripts/test

fast:  ## without the slow tests
	scripts/test --fast

quickstart:  ## the whole flow on the bundled sample
	scripts/quickstart

format:  ## put the code into the house's form
	.venv/bin/ruff format . && .venv/bin/ruff check --fix .
