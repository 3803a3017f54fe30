#!/bin/sh
# Gets the browser that tests/test_browser.py drives: Debian's Chromium, and a font with Chinese in it. Where it cannot be
# had, those tests are skipped, and say so.
command -v chromium >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  timeout 60 apt-get update -qq >/dev/null 2>&1
  timeout 180 apt-get install -y -qq --no-install-recommends chromium fonts-wqy-microhei >/dev/null 2>&1
fi
command -v chromium >/dev/null || echo "There is no Chromium here: the console's tests in a browser are skipped." >&2
exit 0
