#!/bin/sh
# Gets what tests need besides wheels, from Debian: the browser that tests/test_browser.py drives, and a font with Chinese
# in it; a PostgreSQL older than the wheel's, and PgBouncer. Where they cannot be had, those tests are skipped, and say so.
wanted=""
command -v chromium >/dev/null || wanted="chromium fonts-wqy-microhei"
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || wanted="$wanted postgresql"
command -v pgbouncer >/dev/null || test -x /usr/sbin/pgbouncer || wanted="$wanted pgbouncer"
test -n "$wanted" || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1  # nothing is started
  if [ ! -e /etc/postgresql-common/createcluster.conf ]; then  # nor is a cluster made
    mkdir -p /etc/postgresql-common && echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
  fi
  timeout 60 apt-get update -qq >/dev/null 2>&1
  # shellcheck disable=SC2086 # several words
  timeout 180 apt-get install -y -qq --no-install-recommends $wanted >/dev/null 2>&1
fi
command -v chromium >/dev/null || echo "There is no Chromium here: the console's tests in a browser are skipped." >&2
exit 0
