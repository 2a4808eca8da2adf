# shellcheck shell=bash
# Sourced, not run, on every host before `ray start` and before a driver: the checkout's virtual environment, and a Ray that
# only the token opens. Jobs die with "No module named 'ray'" where Ray was started outside the environment.
#   MGMRN_VENV           folder of the virtual environment; without it `.venv` of this checkout
#   RAY_AUTH_TOKEN_PATH  file of the token; without it ~/.ray/auth_token

# A token that other users of the machine can read lets them run code as the cluster's user.
mgmrn_token="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
if [[ -n $(find -L "$mgmrn_token" -perm /077 2> /dev/null) ]]; then
  echo "others can read Ray's token: chmod 600 '$mgmrn_token'" >&2
  return 3
fi

# shellcheck source=/dev/null
source "${MGMRN_VENV:-$(dirname "${BASH_SOURCE[0]}")/../.venv}/bin/activate"
# Ray joins the path of its interpreter unquoted into a line for bash.
python=$(command -v python || true)
if [ -n "$python" ] && [ "$(printf %q "$python")" != "$python" ]; then
  echo "Ray cannot start workers with $python, whose path a shell would split: name another virtual environment with MGMRN_VENV" >&2
  return 3
fi
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
export MLFLOW_DISABLE_TELEMETRY=true
