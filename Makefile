# What there is to do. `make` lists it.

PREFIX ?= /usr/local
DESTDIR ?=
SYSCONFDIR ?= /etc
UNITDIR ?= $(PREFIX)/lib/systemd/system

# Where a virtual environment comes from: the first Python that is new enough and complete. The
# distribution's comes first: that is what a host runs the agent with, and others are often built
# without optimisation, which costs an event a quarter more CPU.
PYTHON = $(or $(shell for python in /usr/bin/python3 python3 python3.14 python3.13 python3.12 \
	python3.11; do \
	"$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && { command -v "$$python"; break; }; done),$(error no Python of 3.11 or later \
	with its venv module; on Debian: apt-get install python3-venv))

BUILD = build
VENV = .venv
SOURCES := $(shell find hotplug -name __pycache__ -prune -o \
	'(' -type d -o -name '*.py' -o -name '*.[ch]' -o -name meson.build ')' -print) \
	meson.build meson.options pyproject.toml

# Debian packages. xen-utils stands for the xen-utils-VERSION of the release.
BUILD_PACKAGES = gcc libc6-dev python3 python3-dev python3-venv
DEMO_PACKAGES = libudev1 mount util-linux xen-utils xen-utils-common xenstore-utils
TEST_PACKAGES = $(DEMO_PACKAGES) bridge-utils conntrack dpkg e2fsprogs iproute2 iptables nbdkit \
	nftables openvswitch-switch procps strace systemd udev
LAB_PACKAGES = $(BUILD_PACKAGES) e2fsprogs mmdebstrap qemu-system-x86 util-linux zstd

.PHONY: help
help:  ## list what there is to do
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1#\2/p' $(MAKEFILE_LIST) | \
		awk -F'#' '{ printf "%-18s %s\n", $$1, $$2 }'

.PHONY: venv
venv: $(VENV)/.project $(VENV)/.dev  ## .venv, ready: the project as it is now, and the tools

.PHONY: demo
demo: $(VENV)/.project $(BUILD)/demo-packages  ## a guest's disks, by the stock scripts and by ours
	@$(VENV)/bin/python tests/demo.py

.PHONY: test
test: venv $(BUILD)/test-packages $(BUILD)/lab-packages  ## the tests, on a real Xen too (as root)
	$(VENV)/bin/pytest tests -m 'not soak and not long'

.PHONY: test-fast
test-fast: venv $(BUILD)/test-packages  ## the same without the lab
	$(VENV)/bin/pytest tests -m 'not soak' --ignore=tests/lab

.PHONY: test-unit
test-unit: venv  ## the tests that need no root
	$(VENV)/bin/pytest tests/unit

.PHONY: lint
lint: venv  ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

.PHONY: bench
bench: venv $(BUILD)/test-packages  ## how long events take, the stock scripts beside ours (as root)
	$(VENV)/bin/python tests/bench/events.py

# A real Xen in an emulator. XEN=4.20 chooses another release than 4.17.
.PHONY: lab-test
lab-test: venv $(BUILD)/lab-packages  ## all tests on a real Xen, in an emulator; XEN=4.17 or 4.20
	$(VENV)/bin/pytest tests/lab

.PHONY: lab-bench
lab-bench: venv $(BUILD)/lab-packages  ## restoring a guest on it, the stock scripts beside ours
	$(VENV)/bin/python tests/lab/bench.py

.PHONY: lab-shell
lab-shell: venv $(BUILD)/lab-packages  ## a console of its dom0
	$(VENV)/bin/python tests/lab/shell.py

.PHONY: lab-matrix
lab-matrix:  ## lab-test and lab-bench on every release
	status=0; for release in 4.17 4.20; do for target in lab-test lab-bench; do \
		$(MAKE) XEN=$$release $$target || status=1; \
	done; done; exit $$status

.PHONY: soak
soak: venv $(BUILD)/test-packages  ## the long random run (as root)
	$(VENV)/bin/pytest tests -m soak

# Needs atheris, which is not there for every Python.
.PHONY: fuzz
fuzz: venv  ## broken save files for those who read them; SECONDS=600
	@$(call REQUIREMENTS,table["project"]["optional-dependencies"]["fuzz"]) >$(VENV)/.fuzz.txt
	@$(PIP) install -r $(VENV)/.fuzz.txt
	$(VENV)/bin/python tests/fuzz/savefile.py --seconds $(or $(SECONDS),600) \
		--corpus $(BUILD)/fuzz/savefile

# The packages of Debian that are missing, and xen-utils only if no release of it is there.
define install_packages
@missing=; for package in $(1); do \
	if [ $$package = xen-utils ]; then \
		set -- /usr/lib/xen-*/bin/xenstored; [ -e "$$1" ] || missing="$$missing xen-utils"; \
	elif ! dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q ' installed$$'; then \
		missing="$$missing $$package"; \
	fi; \
done; \
if [ -n "$$missing" ]; then \
	if ! command -v apt-get >/dev/null; then \
		echo "This is not Debian; the tests need what corresponds to:$$missing" >&2; \
		mkdir -p $(BUILD) && touch $@; exit 0; \
	fi; \
	if [ "$$(id -u)" != 0 ]; then \
		echo "These Debian packages are missing and only root can install them:$$missing" >&2; \
		exit 1; \
	fi; \
	apt-get update -qq || exit 1; \
	release=$$(apt-cache pkgnames xen-utils- | grep -x 'xen-utils-[0-9.]*' | sort -V \
		| tail -n 1); \
	missing=$$(echo "$$missing " | sed "s/ xen-utils / $$release /"); \
	echo "Installing these Debian packages:" $$missing; \
	DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes \
		apt-get install -y -qq --no-install-recommends $$missing >/dev/null || exit 1; \
fi; \
mkdir -p $(BUILD) && touch $@
endef

$(BUILD)/build-packages: Makefile
	$(call install_packages,$(BUILD_PACKAGES))

$(BUILD)/demo-packages: Makefile
	$(call install_packages,$(DEMO_PACKAGES))

$(BUILD)/test-packages: Makefile
	$(call install_packages,$(TEST_PACKAGES))

$(BUILD)/lab-packages: Makefile
	$(call install_packages,$(LAB_PACKAGES))

# The build's tools are found in PATH; the lock is for two terminals.
PIP = PATH="$$PWD/$(VENV)/bin:$$PATH" flock $(BUILD)/lock \
	$(VENV)/bin/python -m pip -qq --disable-pip-version-check
# $(1): a Python expression that picks requirements from the table `project` of pyproject.toml
REQUIREMENTS = $(VENV)/bin/python -c 'import tomllib; \
	table = tomllib.load(open("pyproject.toml", "rb")); print(*$(1), sep="\n")'

$(VENV)/.requirements: pyproject.toml $(BUILD)/build-packages
	@echo "Making $(VENV) with what the project needs"
	@[ -x $(VENV)/bin/python ] || $(PYTHON) -m venv $(VENV)
	@$(call REQUIREMENTS,table["build-system"]["requires"] + table["project"]["dependencies"]) \
		>$@.txt
	@$(PIP) install -r $@.txt && touch $@

$(VENV)/.dev: $(VENV)/.requirements
	@echo "Installing the tools for tests and lint into $(VENV)"
	@$(call REQUIREMENTS,table["project"]["optional-dependencies"]["dev"]) >$@.txt
	@$(PIP) install -r $@.txt && touch $@

# Never editable: what is tested is what a user gets.
$(VENV)/.project: $(SOURCES) $(VENV)/.requirements
	@echo "Installing the project into $(VENV)"
	@$(PIP) install --no-deps --no-build-isolation --force-reinstall \
		--config-settings=build-dir=$(BUILD)/meson \
		--config-settings=setup-args=-Dwerror=true . && touch $@

# Everything but the configuration and the units is in one folder, apart from the launcher.
LIBRARY = $(PREFIX)/lib/xen-hotplug
# Not this tree's .venv: the Python that it was made from.
INTERPRETER = $(shell $(VENV)/bin/python -c 'import sys; print(sys.base_prefix)')/bin/python3

.PHONY: install
install: $(VENV)/.requirements  ## command, scripts, units, rules, settings; PREFIX and DESTDIR count
	@echo "Installing below $(DESTDIR)$(PREFIX)"
	@rm -rf "$(DESTDIR)$(LIBRARY).new"
	@$(PIP) install --no-build-isolation --target "$(DESTDIR)$(LIBRARY).new" \
		--config-settings=build-dir=$(BUILD)/install \
		--config-settings=setup-args="-Dinterpreter=$(INTERPRETER)" \
		--config-settings=setup-args="-Dsite=$(LIBRARY)" .
	@rm -r "$(DESTDIR)$(LIBRARY).new/bin"
	@install -m 644 etc/xen-hotplug.toml "$(DESTDIR)$(LIBRARY).new/xen-hotplug.toml"
	@sed 's|/usr/local/lib/xen-hotplug|$(LIBRARY)|g' udev-rules/xen-hotplug.rules \
		>"$(DESTDIR)$(LIBRARY).new/xen-hotplug.rules"
	@rm -rf "$(DESTDIR)$(LIBRARY)"
	@mv "$(DESTDIR)$(LIBRARY).new" "$(DESTDIR)$(LIBRARY)"
	@install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(SYSCONFDIR)" "$(DESTDIR)$(UNITDIR)"
	@printf '%s\n' '#!$(INTERPRETER) -IXutf8' 'import sys' \
		'sys.path.append("$(LIBRARY)")' 'from hotplug.cli import main' 'sys.exit(main())' \
		>"$(DESTDIR)$(PREFIX)/bin/xen-hotplug"
	@chmod 755 "$(DESTDIR)$(PREFIX)/bin/xen-hotplug"
	@ln -s hotplug/client/libxl-save-helper "$(DESTDIR)$(LIBRARY)/libxl-save-helper"
	@for program in xc_restore:xc_restore convert-legacy-stream:converter; do \
		printf '%s\n' '#!$(INTERPRETER) -ISXutf8' 'import sys' 'sys.path.append("$(LIBRARY)")' \
			"from hotplug.restore.$${program#*:} import run" 'run(sys.argv)' \
			>"$(DESTDIR)$(LIBRARY)/$${program%:*}" || exit 1; \
		chmod 755 "$(DESTDIR)$(LIBRARY)/$${program%:*}"; \
	done
	@for unit in service socket; do \
		sed 's|/usr/local/bin/|$(PREFIX)/bin/|' etc/xen-hotplug.$$unit \
			>"$(DESTDIR)$(UNITDIR)/xen-hotplug.$$unit" || exit 1; \
	done
	@[ -e "$(DESTDIR)$(SYSCONFDIR)/xen-hotplug.toml" ] || \
		install -m 644 etc/xen-hotplug.toml "$(DESTDIR)$(SYSCONFDIR)/xen-hotplug.toml"
	@echo "The scripts for the toolstack are in $(LIBRARY)/hotplug/client/scripts."
	@echo "\`xen-hotplug install' puts them, and libxl-save-helper, in place of the stock ones."

# Not while copies of ours are in use: without the library they fail where no agent answers, and
# the command that puts the stock scripts back would be gone. To run it is not make's business:
# it changes the host, and this may be one of several installations.
.PHONY: uninstall
uninstall:  ## remove what `make install` put there, but not settings that were changed
	@used=$$(grep -lsF "$(LIBRARY)" "$(DESTDIR)$(SYSCONFDIR)/xen/scripts/"* \
		"$(DESTDIR)"/usr/lib*/xen*/bin/libxl-save-helper | tr '\n' ' '); \
	if [ -n "$$used" ]; then \
		echo "Run \`xen-hotplug uninstall' first; still in use: $$used" >&2; exit 1; \
	fi
	@if cmp -s "$(DESTDIR)$(LIBRARY)/xen-hotplug.toml" "$(DESTDIR)$(SYSCONFDIR)/xen-hotplug.toml"; \
	then rm -f "$(DESTDIR)$(SYSCONFDIR)/xen-hotplug.toml"; \
	elif [ -e "$(DESTDIR)$(SYSCONFDIR)/xen-hotplug.toml" ]; \
	then echo "$(DESTDIR)$(SYSCONFDIR)/xen-hotplug.toml was changed and stays"; fi
	@rm -f "$(DESTDIR)$(PREFIX)/bin/xen-hotplug"
	@rm -f "$(DESTDIR)$(UNITDIR)/xen-hotplug.service" "$(DESTDIR)$(UNITDIR)/xen-hotplug.socket"
	@rm -rf "$(DESTDIR)$(LIBRARY)"

.PHONY: clean
clean:  ## remove what was built here
	rm -rf $(BUILD) $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
