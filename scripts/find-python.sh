#!/bin/sh
# Print the path of a Python that phase-bus can use; otherwise say in one line what was found, and exit with 2.
# $PYTHON, if set and not empty, is the only one considered.
set -u

wanted='Python 3.11, 3.12 or 3.13 with venv'

# Prints "ok PATH" or why not. Each candidate is really run: a version manager's shim may exist and still fail.
probe() {
    "$1" -c '
import sys
version = "%d.%d.%d" % sys.version_info[:3]
if not (3, 11) <= sys.version_info[:2] < (3, 14):
    sys.exit("is " + version)
try:
    import ensurepip, venv
except ImportError:
    sys.exit("is " + version + " but has no venv (on Debian or Ubuntu: apt-get install python3-venv)")
sys.stdout.write("ok " + sys.executable + "\n")
' 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
else
    set -- python3 python3.13 python3.12 python3.11
fi

found=''
for candidate in "$@"; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    if answer=$(probe "$candidate"); then
        printf '%s\n' "${answer#ok }"
        exit 0
    fi
    case $answer in
        'is '*) ;;
        *) answer='does not run' ;;
    esac
    found="${found:+$found; }$candidate $answer"
done

if [ -z "$found" ]; then
    found="$1 was not found"
fi
echo "phase-bus needs $wanted: $found. Name a suitable one with: make PYTHON=/path/to/python" >&2
exit 2
