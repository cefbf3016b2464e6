# Sourced from the repository's root: makes the virtual environment, installs what is missing in it
# and activates it.
#
# RMOOD_REQUIREMENTS: requirements.txt (default, for the scripts) or requirements-dev.txt (for the
#     tests; includes requirements.txt).
# RMOOD_VENV: another folder than .venv; an environment that exists is completed, not replaced.

VENV="${RMOOD_VENV:-.venv}"
PYTHON="${PYTHON:-python3}"
REQUIREMENTS="${RMOOD_REQUIREMENTS:-requirements.txt}"

if [ ! -f "$VENV/bin/activate" ]; then
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "$PYTHON is $("$PYTHON" --version 2>&1): Python 3.11 or newer is needed:" \
            "set PYTHON to one" >&2
        exit 2
    fi
    echo "== making the virtual environment $VENV"
    "$PYTHON" -m venv "$VENV"
fi
source "$VENV/bin/activate"

# The environment keeps a copy of each requirements file that was installed: where one differs,
# install again.
complete=yes
for file in requirements.txt "$REQUIREMENTS"; do
    cmp -s "$file" "$VENV/rmood-$file" || complete=no
done
if [ $complete = yes ]; then
    echo "== $VENV has what $REQUIREMENTS asks for"
else
    echo "== installing $REQUIREMENTS into $VENV (minutes, the first time)"
    pip_install() { python -m pip install --quiet --disable-pip-version-check "$@"; }
    pip_install "$(grep '^torch==' requirements.txt)"
    pip_install -r "$REQUIREMENTS"
    for file in requirements.txt "$REQUIREMENTS"; do
        cp "$file" "$VENV/rmood-$file"
    done
fi
