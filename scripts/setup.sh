#!/bin/sh
# Makes .venv, or brings it up to date: `scripts/setup.sh run|dev`. Called by the Makefile.
# Needs only Python 3.11 or newer with its venv module.
set -eu
cd "$(dirname "$0")/.."
what=${1:-run}
case "$what" in
  run) extras='openai,anthropic,google,mcp' stamps='.venv/.ready' ;;
  dev) extras='openai,anthropic,google,mcp,dev' stamps='.venv/.ready .venv/.ready-dev' ;;
  *) echo "setup.sh: say run or dev, not '$what'" >&2; exit 2 ;;
esac

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# A virtual environment holds absolute paths, so one that was moved or copied is made again.
if ! new_enough .venv/bin/python || ! grep -q "$PWD/.venv" .venv/bin/activate 2>/dev/null; then
  python=
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if new_enough "$candidate"; then python=$candidate; break; fi
  done
  if [ -z "$python" ]; then
    echo "Conveyor needs Python 3.11 or newer; found none. Install it, or name one: make PYTHON=/path/to/python3 ..." >&2
    exit 1
  fi
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "$python has no venv module. On Debian or Ubuntu: sudo apt-get install python3-venv" >&2
    exit 1
  fi
  echo "Setting up .venv with $("$python" --version) (once, about a minute) ..." >&2
  rm -rf .venv
  "$python" -m venv .venv
else
  echo "Bringing .venv up to date ..." >&2
fi

.venv/bin/python -m pip install -qq --disable-pip-version-check \
  --constraint constraints.txt --editable ".[$extras]"
# shellcheck disable=SC2086 # a list of names without spaces
touch $stamps
