#!/usr/bin/env bash
# Makes the virtual environment $1 from the pinned lock, with uv where it can be had, else pip.
set -euo pipefail
venv=$1

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

python=""
for candidate in ${PYTHON:-} python3.12 python3.11 python3 python; do
  if fits "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
  echo "error: no Python 3.11 or 3.12 was found." >&2
  echo "  found:    $(python3 --version 2>&1 || echo none)" >&2
  echo "  fix:      Install one, or name it: make setup PYTHON=/path/to/python3.12" >&2
  exit 1
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
lock=requirements-$version.lock
echo "setting up $venv: Python $version, $(grep -c == "$lock") pinned packages" >&2

"$python" -m venv --clear "$venv"
with_uv() {
  local uv
  uv=$(command -v uv) || { "$venv/bin/pip" install -q uv 2>/dev/null && uv=$venv/bin/uv; } || return 1
  "$uv" pip install -q --python "$venv/bin/python" -r "$lock" &&
    "$uv" pip install -q --python "$venv/bin/python" --no-deps --no-build-isolation -e .
}
if ! with_uv; then
  echo "uv is not to be had or failed; installing with pip, which takes longer" >&2
  "$venv/bin/pip" install -q -r "$lock"
  "$venv/bin/pip" install -q --no-deps --no-build-isolation -e .
fi

# Where Python is told to write no bytecode, as in many containers, every process would compile
# TensorFlow, Ray and Beam anew, for ten seconds of a core: what the commands import is compiled here.
said=$(PYTHONDONTWRITEBYTECODE='' TF_USE_LEGACY_KERAS=1 "$venv/bin/python" -W ignore -c '
import ray.serve, ray.train.tensorflow, tensorflow_recommenders, tensorflow_transform.beam
import httpx, infra.cli, pydantic, typer, uvicorn' 2>&1) || { echo "$said" >&2; exit 1; }
