#!/bin/sh
# Usage: setup-venv.sh EXTRAS STAMP...
# Install the project with EXTRAS (for example "aiperf,dev") into $VENV, by default .venv, editable, in the versions of
# $CONSTRAINTS, by default constraints-dev.txt, then touch each STAMP. Two of these at once take turns, and the second finds the work done.
set -eu

cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
constraints=${CONSTRAINTS:-constraints-dev.txt}
extras=$1
stamp=$2

# True if STAMP is newer than everything the environment is made from.
is_fresh() {
    [ -e "$stamp" ] && "$venv/bin/python" -c '' 2>/dev/null &&
        [ -z "$(find pyproject.toml "$constraints" -newer "$stamp")" ]
}

if [ -z "${PHASE_BUS_SETUP_LOCKED:-}" ]; then
    python=$(sh scripts/find-python.sh) || exit $?
    # The lock is taken by Python because flock(1) is not everywhere. It is tied to an open file that this script
    # inherits when it is started again, so it ends with the script, however that ends.
    export VENV="$venv"
    exec "$python" -c '
import fcntl, os, sys
venv = os.environ["VENV"]
lock = os.open(venv + ".lock", os.O_RDWR | os.O_CREAT, 0o644)
os.set_inheritable(lock, True)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("Waiting for another set-up of", venv, "...", flush=True)
    fcntl.flock(lock, fcntl.LOCK_EX)
os.environ.update(PHASE_BUS_SETUP_LOCKED="1", PYTHON=sys.executable)
os.execv("/bin/sh", ["sh", *sys.argv[1:]])
' scripts/setup-venv.sh "$@"
fi

if is_fresh; then
    exit 0
fi

# Make it anew if there is none, or if the Python it was made from is gone.
if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    echo "Creating $venv with $PYTHON"
    "$PYTHON" -m venv --clear "$venv"
fi

# pip is kept quiet: it would list some 150 packages.
echo "Installing .[$extras] into $venv (the first time takes a few minutes) ..."
started=$venv/.setup-started
touch "$started"
"$venv/bin/python" -m pip install -qq --disable-pip-version-check \
    --constraint "$constraints" --editable ".[$extras]"

# The stamps bear the time at which the work began, so that an edit made meanwhile is not missed.
shift
for each in "$@"; do
    touch -r "$started" "$each"
done
