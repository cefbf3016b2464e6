#!/usr/bin/env bash
# Checks every installed package against the advisories published for it (PyPI's and OSV's), by pip-audit in an environment
# of its own. Needs the network: offline it says that it cannot check.
#
#     bash scripts/advisories.sh
#
# Exit status: 0 no known advisory, 1 there are some (they are listed), 2 it cannot be checked.
set -euo pipefail
cd "$(dirname "$0")/.."
installed="${RMOOD_VENV:-.venv}" venv="${RMOOD_AUDIT_VENV:-.venv-audit}"
cannot() { echo "advisories.sh: cannot be checked here: $1" >&2; exit 2; }
[ -d "$installed" ] || cannot "$installed is not there: run bash scripts/test.sh first, or set RMOOD_VENV"
[ -x "$venv/bin/pip-audit" ] || { "${PYTHON:-python3}" -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check pip-audit==2.10.1; } || cannot "pip-audit could not be installed into $venv"
status=0
said="$("$venv/bin/pip-audit" --progress-spinner off --path "$(echo "$installed"/lib/python3*/site-packages)" 2>&1)" || status=$?
echo "$said"
[ $status = 0 ] || grep -q "known vulnerabilit" <<< "$said" || cannot "the advisories are out of reach (network?); what pip-audit said stands above"
exit $status
