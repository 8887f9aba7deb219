# Skerry: `just up` to try it, `just test` to test it.
set positional-arguments

# what there is
[private]
default:
    @just --list --unsorted

# install what is missing: packages of the system, .venv (quick when nothing changed)
setup group="dev":
    @scripts/setup "$1"

# start everything on this machine, with an example, and serve until Ctrl-C
up *ARGS: (setup "run")
    @exec .venv/bin/skerry up "$@"

# the same, once through, and end: status 0 when every step worked
demo *ARGS: (setup "run")
    @exec .venv/bin/skerry up --demo "$@"

# rollouts on 3 edges and 300 simulated nodes: a bad release, a slow one, a good one while control is killed; 5 minutes
demo-fleet *ARGS: setup
    @exec .venv/bin/python -m scripts.demo_fleet "$@"

# a shop's data on a node that is backed up: its disk is lost, then a bad release is undone with its data; a minute
demo-data *ARGS: setup
    @exec .venv/bin/python -m scripts.demo_data "$@"

# what the tests need besides: a browser
[private]
browser: setup
    @scripts/browser

# lint, formatting, types
check: setup
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    .venv/bin/mypy
    @.venv/bin/python -m tests.support.flaked_file

# Their hundreds of processes would each compile all modules where Python may keep no bytecode.
pytest := "env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m pytest"
by_fives := "--numprocesses=5 --dist=loadfile --no-loadscope-reorder"
# A statement of sql/queries that the database never carries out fails the run.
every_statement := by_fives + " -p tests.support.every_statement"

# the tests, five files at a time (they wait a lot), the quick ones last; `just test -k word` for some of them, one after the other
test *ARGS: browser
    @exec {{ pytest }} {{ if ARGS == "" { by_fives } else { "" } }} "$@"

# the tests once more, on nothing that `just compile` built: all of the edge runtime runs as Python
test-pure *ARGS: browser
    @SKERRY_EDGE_PURE=1 exec {{ pytest }} {{ if ARGS == "" { by_fives } else { "" } }} "$@"

# those of them that `.ci/run` has: what has a compiled counterpart, and what depends on the user who runs it
test-uncompiled: browser
    @paths=$(.venv/bin/python -m tests.support.selections uncompiled user) && \
        SKERRY_EDGE_PURE=1 exec {{ pytest }} {{ by_fives }} $paths

# the unit tests, two processes, no server: under 30 s; `just test-fast -k word` for some of them
test-fast *ARGS: setup
    @exec {{ pytest }} --numprocesses=2 --quiet tests/unit "$@"

# the tests once more, with a proxy before the metadata database that makes it behave as CockroachDB
test-cockroachdb *ARGS: browser
    @SKERRY_TEST_COCKROACHDB=1 exec {{ pytest }} {{ if ARGS == "" { every_statement } else { "" } }} "$@"

# those of them that `.ci/run` has: what touches metadata, and each statement of sql/queries
test-metadata: browser
    @paths=$(.venv/bin/python -m tests.support.selections metadata) && \
        SKERRY_TEST_COCKROACHDB=1 exec {{ pytest }} {{ every_statement }} $paths

# the tests of this version beside the one before, which tests/previous_version names: they need git's history
test-upgrades *ARGS: setup
    @exec {{ pytest }} {{ if ARGS == "" { "--numprocesses=2 --dist=loadfile" } else { "" } }} tests/upgrades "$@"

# the tests with programs of others (Chromium, Prometheus, Alertmanager, an OpenID provider), 4 minutes; `just test-console -k word` for some
test-console *ARGS: browser
    @scripts/debian-tools
    @scripts/openid-provider
    @scripts/console-tools
    @exec {{ pytest }} {{ if ARGS == "" { by_fives } else { "" } }} tests/console "$@"

# the compilers of Rust, Go and AssemblyScript, and editors' servers, which tests of these languages need (else skipped)
toolchains: setup
    @scripts/toolchains

# build those parts of the edge runtime that run faster as machine code, modules of the front and the workers' loop: under 3 minutes
compile: setup
    @scripts/compile

# build the Debian packages skerry-control and skerry-edge of the commit that is checked out, in dist/
packages: setup
    @scripts/packages

# build the Debian packages and test them, installed on a bare Debian 13: 4 minutes, a minute more the first time; as root, or with sudo
test-packages *ARGS: packages
    @scripts/bare-root
    @exec {{ pytest }} tests/packages "$@"

# build the Debian packages and test them with systemd and power cuts, in a box: 5 minutes; not part of `.ci/run`; as root, or with sudo
test-machines *ARGS: packages
    @scripts/bare-root
    @scripts/machine-tools
    @exec {{ pytest }} tests/machines "$@"

# build the docs into a site with search, site/index.html, and test it; a link that leads nowhere fails it
docs: setup
    rm -rf site
    .venv/bin/python -m sphinx -W --keep-going --quiet --fresh-env --builder html --doctree-dir .skerry/docs docs site
    @exec {{ pytest }} --quiet tests/docs

# build the modules that the tree has in it, from the sources beside them: three examples, the Extism kernel, JavaScript's engine
guests: setup
    @.venv/bin/python -m tests.guests.build
    @.venv/bin/python -m scripts.javascript_engine
    @.venv/bin/skerry function build examples/greetings

# record the README's picture, docs/images/terminal.svg, again: real commands, on servers started for them
picture: setup
    @.venv/bin/python scripts/picture.py

# take the pictures of the console, docs/images/console-*.png, again: real pages of a real fleet, started for them (5 minutes)
screenshots: browser
    @.venv/bin/python -m scripts.screenshots

# make docs/errors.md again, of the tables of codes and the explanations in scripts/errors
errors: setup
    @.venv/bin/python -m scripts.errors_page

# make the lists in docs/settings.md again, and the names that programs know, of the tables of settings
settings: setup
    @.venv/bin/python -m scripts.settings_page

# make the modules of C declarations again, of edge_runtime's headers
bindings: setup
    @.venv/bin/python -m scripts.bindings

# the C library under the checks that only clang has: ASan and UBSan, libFuzzer for 10 s, static analysis
test-native *ARGS: compile
    @scripts/native-tools
    @SKERRY_TEST_FUZZ_SECONDS=10 exec {{ pytest }} --numprocesses=2 tests/faults/test_native_checks.py "$@"

# the long versions: of the tests that kill processes, cut the power and fail system calls, of generated modules and calls of hosts; `--all` fails every call (hours)
faults *ARGS: browser
    @scripts/compile
    @scripts/native-tools
    @tests="$(.venv/bin/python -m tests.support.selections faults) $(grep -rl --include='test_*.py' hypothesis tests/unit)" && \
        SKERRY_TEST_KILLS=200 SKERRY_TEST_RELEASES=50 SKERRY_TEST_MODULES=5000 SKERRY_TEST_CUTS=1000 SKERRY_TEST_SEEDS=5000 \
        SKERRY_TEST_GUESTS=5000 SKERRY_TEST_REQUESTS=10 SKERRY_TEST_EXAMPLES=400 SKERRY_TEST_FUZZ_SECONDS=60 \
        SKERRY_TEST_INPUTS=3000 SKERRY_TEST_FLEET=200000 SKERRY_TEST_POLLS=1000 SKERRY_TEST_DELAYS=20 \
        SKERRY_TEST_FRAMES=1000000 SKERRY_TEST_ATTACKS=2000 SKERRY_TEST_COMPILED=1 \
        SKERRY_TEST_CALLS={{ if ARGS == "--all" { "0" } else { "40" } }} \
        exec {{ pytest }} -p tests.support.long_versions {{ if ARGS =~ '^(--all)?$' { by_fives } else { "" } }} $tests \
        {{ if ARGS == "--all" { "" } else { '"$@"' } }}

# tests again and again for some minutes, while their processes are stopped and tasks, threads, store and database come late; words are pytest's
disturb minutes="30" *ARGS: browser
    @scripts/debian-tools
    @scripts/openid-provider
    @scripts/console-tools
    @exec .venv/bin/python -m tests.support.disturb "$@"

# `.ci/run` with all tests in each variant, and half an hour of disturbance: before an issue is called resolved (2 to 3 hours)
everything:
    @.ci/run everything
    @just disturb 30

# the benchmarks, or those that are named (`soak MINUTES` only so); results in bench/results
bench *NAMES: setup
    @exec .venv/bin/python -m bench "$@"

# make the lock files again after a change in pyproject.toml; named packages get newer versions
lock *PACKAGES: setup
    @scripts/lock "$@"
