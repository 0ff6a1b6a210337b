#!/bin/sh
# Usage: check_package.sh
# Build the sdist, and from that the wheel; see that they have every file; install each into an empty environment, and
# use it there. $PYTHON is a Python with `build` and hatchling.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH

"$PYTHON" -m build --no-isolation --outdir "$work/dist" . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }

# What is committed is in the sdist, and what of that is installed is in the wheel.
compare() { # NAME: fail if one of the files in `wanted` is not in `there`
    sort "$work/wanted" >"$work/a"
    sort "$work/there" >"$work/b"
    lacks=$(comm -23 "$work/a" "$work/b")
    [ -z "$lacks" ] || { echo "the $1 lacks" $lacks; exit 1; }
}
git ls-files | grep -v '^\.' >"$work/wanted"
tar -tzf "$work"/dist/*.tar.gz | sed 's|^[^/]*/||' >"$work/there"
compare sdist
git ls-files src consumers | sed 's|^[^/]*/||' >"$work/wanted"
"$PYTHON" -m zipfile -l "$work"/dist/*.whl | awk '{ print $1 }' >"$work/there"
compare wheel

# A user's own directories play no part, nor does this project's.
export HOME="$work" XDG_STATE_HOME="$work/state" XDG_RUNTIME_DIR="$work" XDG_CONFIG_HOME="$work/config"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT="$PWD/constraints-dev.txt"
"$PYTHON" -m venv "$work/venv"
PATH="$work/venv/bin:$PATH"

use() { # PACKAGE
    phase-bus consumers >consumers.txt
    phase-bus exec --with logging:log_file=phases.log --with aggregator:output=summary.json --threshold 'error_rate < 50 %' -- \
        phase-bus simulate --requests 200 --rate 0 >exec.txt 2>&1 || { cat exec.txt; exit 1; }
    phase-bus report latest >report.txt
    echo "$1 is whole, and works in an empty environment"
}
cd "$work"
pip install --quiet dist/*.whl
pip check
phase-bus doctor
phase-bus new consumer mine >new.txt
use wheel
pip install --quiet --force-reinstall --no-deps dist/*.tar.gz
use sdist
