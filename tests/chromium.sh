#!/bin/sh
# Gets what tests need of Debian: Chromium and a font with Chinese in it (tests/test_browser.py), nginx (tests/test_proxy.py)
# and ip (tests/test_hosts.py). Where one cannot be had, those tests are skipped, and say so.
PATH=$PATH:/usr/sbin:/sbin
wanted=
command -v chromium >/dev/null || wanted="chromium fonts-wqy-microhei"
command -v nginx >/dev/null || wanted="$wanted nginx-light"
command -v ip >/dev/null || wanted="$wanted iproute2"
[ -z "$wanted" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  timeout 60 apt-get update -qq >/dev/null 2>&1
  # shellcheck disable=SC2086
  timeout 180 apt-get install -y -qq --no-install-recommends $wanted >/dev/null 2>&1
fi
for command in chromium nginx ip; do
  command -v $command >/dev/null || echo "There is no $command here: the tests that need it are skipped." >&2
done
exit 0
