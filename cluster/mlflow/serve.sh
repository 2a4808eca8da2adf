#!/usr/bin/env bash
# An MLflow server with logins on a PostgreSQL of yours, on loopback, in the foreground until Ctrl-C:
#   cluster/mlflow/serve.sh postgresql://mlflow@127.0.0.1:5432/mlflow [OPTIONS of `mlflow server` …]
# The named database and a second one for accounts, `mlflow_auth` in this example, must exist and belong to the named user:
#   createuser --pwprompt mlflow && createdb --owner=mlflow mlflow && createdb --owner=mlflow mlflow_auth
# libpq finds the user's password, in ~/.pgpass or the file that PGPASSFILE names.
#   MGMRN_TRACKING  folder of login, form key and artifacts; without it .mgmrn/tracking of the checkout
#   MGMRN_VENV      folder of the virtual environment; without it `.venv` of the checkout
set -euo pipefail
umask 077

refuse() { echo "error: $1" >&2; exit 2; }

here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
database=${1:-}
case $database in
  '' | -*) refuse "no database is named; usage: serve.sh postgresql://USER@HOST:PORT/DATABASE [OPTIONS of mlflow server …]" ;;
  *://*:*@*) refuse "the address holds a password, which every user could read in the list of processes; put it in ~/.pgpass" ;;
  postgresql://*/*[!/]) shift ;;
  *) refuse "'$database' is not like postgresql://USER@HOST:PORT/DATABASE" ;;
esac
address="postgresql+psycopg2://${database#*://}"
query=""
[[ $address != *\?* ]] || query="?${address#*\?}"

# shellcheck source=cluster/environment.sh
source "$here/../environment.sh"

folder=$(realpath -m "${MGMRN_TRACKING:-$here/../../.mgmrn/tracking}")
mkdir -p "$folder/artifacts"
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
[[ -s $folder/flask.key ]] || secret > "$folder/flask.key"
[[ -s $folder/credentials.env ]] ||
  printf 'export MLFLOW_TRACKING_USERNAME=admin\nexport MLFLOW_TRACKING_PASSWORD=%s\n' "$(secret)" > "$folder/credentials.env"
grep -v '^database_uri' "$here/basic_auth.ini" > "$folder/basic_auth.ini"
echo "database_uri = ${address%%\?*}_auth$query" >> "$folder/basic_auth.ini"

# Addresses and secrets go by the environment, which other users cannot read.
# shellcheck source=/dev/null
source "$folder/credentials.env"
export MLFLOW_BACKEND_STORE_URI=$address
export MLFLOW_AUTH_CONFIG_PATH=$folder/basic_auth.ini
export MLFLOW_AUTH_ADMIN_USERNAME=$MLFLOW_TRACKING_USERNAME MLFLOW_AUTH_ADMIN_PASSWORD=$MLFLOW_TRACKING_PASSWORD
MLFLOW_FLASK_SERVER_SECRET_KEY=$(< "$folder/flask.key")
export MLFLOW_FLASK_SERVER_SECRET_KEY
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
unset MLFLOW_TRACKING_URI

echo "clients log in after: source $folder/credentials.env" >&2
exec mlflow server --app-name=basic-auth --host=127.0.0.1 --port=5000 --workers=1 \
  --artifacts-destination="$folder/artifacts" "$@"
