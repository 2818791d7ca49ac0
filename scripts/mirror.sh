#!/usr/bin/env bash
# Prints the URI of the Debian archive that this machine installs from; security and third-party archives are left out.
# The scripts that need packages of another suite ask here, so that no mirror is written down anywhere.
set -euo pipefail

ask() {
  # shellcheck disable=SC2016 # apt expands these, not the shell
  apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 2>/dev/null |
    awk -F'|' '$1 == "Debian" && $2 == "Debian" && !uri { uri = $3 } END { print uri }'
}

uri=$(ask)
if [ -z "$uri" ]; then # without package lists apt does not know yet which archive is Debian's
  "$(dirname "$0")/deps.sh" --update
  uri=$(ask)
fi
[ -n "$uri" ] || { echo "mirror: no Debian archive in this machine's apt configuration" >&2; exit 1; }
echo "$uri"
