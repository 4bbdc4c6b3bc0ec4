# make demo    watch the pool survive the loss of every server session
# make test    everything that CI runs
#
# Each is complete by itself on a fresh clone: it needs Python >= 3.11 and an index to install
# from. ARGS is passed on: make demo ARGS=--help, make test ARGS="-s lint".

VENV := .venv
PYTHON ?=
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: demo test

demo: $(VENV)/demo.stamp
	$(VENV)/bin/connpool demo $(ARGS)

test: $(VENV)/nox.stamp
	$(VENV)/bin/nox $(ARGS)

$(VENV)/demo.stamp: $(VENV)/venv.stamp pyproject.toml
	$(VENV)/bin/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/nox.stamp: $(VENV)/venv.stamp pyproject.toml
	$(VENV)/bin/python -m pip install --quiet nox
	@touch $@

# The first Python that is new enough. Debian keeps ensurepip, which a virtual environment needs,
# in a package of its own.
$(VENV)/venv.stamp:
	@for python in $(PYTHONS) none; do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	done; \
	if [ "$$python" = none ]; then \
	    echo "no Python >= 3.11 among: $(PYTHONS); name one: make PYTHON=/path/to/python" >&2; \
	    exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    package="$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"; \
	    if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	        echo "$$python cannot make virtual environments; as root: apt-get install $$package" >&2; \
	        exit 1; \
	    fi; \
	    echo "installing $$package"; \
	    apt-get update -qq && \
	        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$$package" >/dev/null || exit 1; \
	fi; \
	echo "$$("$$python" --version) makes $(VENV)"; \
	"$$python" -m venv --clear $(VENV)
	@touch $@
