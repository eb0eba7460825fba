#!/bin/sh
# Run once by the image of PostgreSQL, as its superuser: who owns the tables, and who works with them.
set -eu
psql -X -q -v ON_ERROR_STOP=1 -v password="$FLOWLEDGER_PASSWORD" -d postgres <<'SQL'
CREATE ROLE flowledger_owner LOGIN PASSWORD :'password';
CREATE ROLE flowledger_service NOLOGIN;
GRANT flowledger_service TO flowledger_owner WITH ADMIN OPTION;
CREATE ROLE flowledger LOGIN PASSWORD :'password' IN ROLE flowledger_service;
CREATE DATABASE flowledger OWNER flowledger_owner;
SQL
