#!/bin/sh
# PgBouncer with the file of users that it wants: pgbouncer.sh CONFIGURATION USERS. The password comes from the environment.
set -eu
umask 077
quoted=$(printf %s "$FLOWLEDGER_PASSWORD" | sed 's/"/""/g')
printf '"flowledger" "%s"\n' "$quoted" >"$2"
exec pgbouncer "$1"
