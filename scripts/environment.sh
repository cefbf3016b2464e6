# Sourced from the repository's root: makes the virtual environment, installs requirements.txt into it and activates it.
# RMOOD_VENV names another folder than .venv (one that exists and has no stamp of ours is completed, not replaced).

VENV="${RMOOD_VENV:-.venv}"
PYTHON="${PYTHON:-python3}"

if [ ! -f "$VENV/bin/activate" ]; then
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$PYTHON is $("$PYTHON" --version 2>&1): Python 3.11 or newer is needed: set PYTHON to one" >&2; exit 2; }
    echo "== making the virtual environment $VENV"
    "$PYTHON" -m venv "$VENV"
fi
source "$VENV/bin/activate"

# The stamp is a copy of the requirements that were installed: with other requirements, install again.
if cmp -s requirements.txt "$VENV/rmood-requirements.txt"; then
    echo "== $VENV holds what requirements.txt asks for"
else
    echo "== installing requirements.txt into $VENV (minutes, the first time)"
    python -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' requirements.txt)"
    python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt "$VENV/rmood-requirements.txt"
fi
