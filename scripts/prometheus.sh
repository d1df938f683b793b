#!/usr/bin/env bash
# prometheus.sh: installs Prometheus and promtool if missing. The tests have it scrape the service and evaluate every
# expression of the dashboard and the alerts; without it they are skipped, with a message.
. "$(dirname "$0")/lib.sh"

command -v prometheus >/dev/null && command -v promtool >/dev/null && exit
(system_package prometheus "the tests of the dashboard and the alerts need prometheus and promtool, which are not installed") \
    || say "without them those tests will be skipped"
