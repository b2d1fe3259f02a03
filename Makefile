# Everything that is run on this project. `.ci/run` calls these targets in a fresh environment.
.PHONY: test slow trainers docs lint format bench constraints newest lower-bounds wheel mutants fuzz

test:  ## the fast tests
	pytest

slow:  ## the long proofs
	pytest -m slow

trainers:  ## the proofs against real trainers, in an environment of their own
	.ci/trainers

docs:  ## build the documentation site into build/site; needs the extra `docs`
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet -f docs/mkdocs.yml
	@echo "built; read it with: python -m http.server --directory build/site"

lint:  ## linters and types
	ruff check .
	ruff format --check .
	mypy

format:  ## fix what the linters can fix
	ruff check --fix .
	ruff format .

bench:  ## throughput, memory and start-up
	for name in throughput default memory startup noise verification checking; do python tests/benchmarks/$$name.py; done

constraints:  ## resolve constraints.txt again, for all Python versions at once; needs uv
	.ci/constraints

newest:  ## before a release: the fast tests without constraints.txt, and what drifts
	.ci/newest

lower-bounds:  ## the oldest versions that pyproject.toml admits
	.ci/lower-bounds

wheel:  ## build the wheel and run the demo from it
	.ci/wheel

mutants:  ## break the core on purpose and see whether the tests notice
	python tests/mutation/run.py

fuzz:  ## five minutes of random input; needs atheris
	python tests/fuzzing/run.py --seconds 300
