#!/usr/bin/env bash
# PostgreSQL's image runs this once, when its volume is empty. Two roles, neither of them the superuser: `mlflow` owns the
# tracking server's databases, `studies` that of the searches, so that a driver's password opens no runs and no accounts.
set -euo pipefail

: "${MLFLOW_DATABASE_PASSWORD:?is not set}" "${STUDIES_PASSWORD:?is not set}"

psql --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname=postgres \
  --set=mlflow="$MLFLOW_DATABASE_PASSWORD" --set=studies="$STUDIES_PASSWORD" <<'SQL'
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE ROLE studies LOGIN PASSWORD :'studies';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
CREATE DATABASE studies OWNER studies;
REVOKE CONNECT ON DATABASE postgres, mlflow, mlflow_auth, studies FROM PUBLIC;
SQL
