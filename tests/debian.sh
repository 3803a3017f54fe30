#!/bin/sh
# Gets what tests need besides wheels, from Debian: a browser and a font with Chinese in it, an older PostgreSQL, PgBouncer,
# nginx, Prometheus, a Redis with TLS, and ip for hosts of their own. Where one cannot be had, the tests that need it are skipped, and say so.
PATH=$PATH:/usr/sbin:/sbin:$(echo /usr/lib/postgresql/*/bin | tr ' ' ':')
NEEDED="chromium:chromium,fonts-wqy-microhei postgres:postgresql pgbouncer:pgbouncer nginx:nginx-light prometheus:prometheus redis-server:redis-server ip:iproute2"

missing() {
  for each in $NEEDED; do
    command -v "${each%%:*}" >/dev/null || echo "$each"
  done
}

[ -z "$(missing)" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # nothing is started
  if [ ! -e /etc/postgresql-common/createcluster.conf ]; then # nor is a cluster made
    mkdir -p /etc/postgresql-common && echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
  fi
  timeout 60 apt-get update -qq >/dev/null 2>&1
  # shellcheck disable=SC2046 # a word a package
  timeout 240 apt-get install -y -qq --no-install-recommends $(missing | cut -d: -f2 | tr ',' ' ') >/dev/null 2>&1
  PATH=$PATH:$(echo /usr/lib/postgresql/*/bin | tr ' ' ':')
fi
for each in $(missing); do
  echo "There is no ${each%%:*} here: the tests that need it are skipped." >&2
done
exit 0
