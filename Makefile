PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test check lint clean

help:  ## what can be made
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1"
	$(BIN)/python -m pip install -q -r requirements.txt
	@touch $@

$(VENV)/tested: $(VENV)/installed pyproject.toml
	$(BIN)/python -m pip install -q --group test
	@touch $@

TEST_PHOTOS := $(addprefix etc/photos/,lake-sherburne.png oakland-zoo-otters.png roman-colosseum.png)

demo: $(VENV)/installed  ## compress photographs and back, then train a small flow: about four minutes on two cores
	$(BIN)/python easyEncode.py -img $(TEST_PHOTOS) -out output/demo -force
	$(BIN)/python easyEncode.py -decode output/demo -out output/demo -force
	$(BIN)/python easymain.py -folder opt/demo $(if $(wildcard opt/demo/parameter.json),-load, \
		-HUE -hchnl 32 -paper -batch 32 -lr 0.004 -lrSchedule cosine -ema 0.99 -epoch 6 -savePeriod 2)
	@echo "the loss curve: opt/demo/pic/lossCurve.png"

test: $(VENV)/tested  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/tested  ## check the style
	$(BIN)/python -m ruff check .

check: lint test  ## what CI runs

clean:  ## remove the virtual environment and caches; models in opt/ stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
