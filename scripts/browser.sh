#!/usr/bin/env bash
# browser.sh: installs Chromium if no browser of its kind is there. The tests of the page drive it; without it they are
# skipped, with a message.
. "$(dirname "$0")/lib.sh"

for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && exit
done
(system_package chromium "the tests of the page need Chromium, which is not installed") \
    || say "without it those tests will be skipped"
