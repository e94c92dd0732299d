# Makes the database at the first start, as the official image does, and becomes the server.
set -eu
data=/var/lib/postgresql/data
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
install --directory --owner=postgres --group=postgres --mode=700 "$data"
install --directory --owner=postgres --group=postgres /var/run/postgresql
if [ ! -s "$data/PG_VERSION" ]; then
  install --owner=postgres --mode=400 "$POSTGRES_PASSWORD_FILE" /tmp/password
  as_postgres initdb --pgdata="$data" --username="$POSTGRES_USER" --pwfile=/tmp/password \
    --auth-local=trust --auth-host=scram-sha-256 > /dev/null
  rm /tmp/password
  echo "host all all all scram-sha-256" >> "$data/pg_hba.conf"
  echo "CREATE DATABASE $POSTGRES_DB;" | as_postgres postgres --single -j -D "$data" postgres > /dev/null
fi
exec setpriv --reuid=postgres --regid=postgres --init-groups \
  postgres -D "$data" -c listen_addresses='*'
