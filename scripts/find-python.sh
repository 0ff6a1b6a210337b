#!/bin/sh
# Usage: find-python.sh [VERSION]
# Print the path of a Python that phase-bus can use, of that VERSION (for example 3.13) if one is given; otherwise say in
# one line what was found, and exit with 2. Without VERSION, $PYTHON is the only one considered if it is set and not empty.
set -u

version=${1:-}
wanted="Python ${version:-3.11, 3.12 or 3.13} with venv"

# Prints "ok PATH" or why not. Each candidate is really run: a version manager's shim may exist and still fail.
probe() {
    "$1" -c '
import sys
version = "%d.%d.%d" % sys.version_info[:3]
if not (3, 11) <= sys.version_info[:2] < (3, 14) or not version.startswith(sys.argv[1]):
    sys.exit("is " + version)
try:
    import ensurepip, venv
except ImportError:
    sys.exit("is " + version + " but has no venv (on Debian or Ubuntu: apt-get install python3-venv)")
sys.stdout.write("ok " + sys.executable + "\n")
' "$version" 2>&1
}

# pyenv has Pythons that are not on the path.
pyenv_pythons() {
    ! command -v pyenv >/dev/null 2>&1 || ls "$(pyenv root)/versions/$version".*/bin/python 2>/dev/null
}

if [ -n "$version" ]; then
    # shellcheck disable=SC2046 # one word each
    set -- "python$version" python3 $(pyenv_pythons)
elif [ -n "${PYTHON:-}" ]; then
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
[ -n "$version" ] || hint='. Name a suitable one with: make PYTHON=/path/to/python'
echo "phase-bus needs $wanted: $found${hint:-}" >&2
exit 2
