#!/usr/bin/env bash
# Checks every installed package against the advisories published for it (PyPI's and OSV's), by
# pip-audit in an environment of its own. Needs the network: offline it says that it cannot check.
#
#     bash scripts/advisories.sh
#
# Exit status: 0 no known advisory, 1 there are some (they are listed), 2 it cannot be checked.
set -euo pipefail
cd "$(dirname "$0")/.."
installed="${RMOOD_VENV:-.venv}"
audit="${RMOOD_AUDIT_VENV:-.venv-audit}"
cannot() { echo "advisories.sh: cannot be checked here: $1" >&2; exit 2; }

[ -d "$installed" ] ||
    cannot "$installed is missing: run bash scripts/test.sh first, or set RMOOD_VENV"
if [ ! -x "$audit/bin/pip-audit" ]; then
    install=("$audit/bin/pip" install --quiet --disable-pip-version-check pip-audit==2.10.1)
    { "${PYTHON:-python3}" -m venv "$audit" && "${install[@]}"; } ||
        cannot "pip-audit could not be installed into $audit"
fi

packages="$(echo "$installed"/lib/python3*/site-packages)"
status=0
output="$("$audit/bin/pip-audit" --progress-spinner off --path "$packages" 2>&1)" || status=$?
echo "$output"
[ $status = 0 ] || grep -q "known vulnerabilit" <<< "$output" ||
    cannot "the advisories are out of reach (network?); see the output of pip-audit above"
exit $status
