#!/usr/bin/env bash
# prometheus.sh: sees to it that a Prometheus can be started, with its promtool: the tests have it scrape the service and
# answer every question of the dashboard and the alerts. Without it those tests are skipped, and this says so.
. "$(dirname "$0")/lib.sh"

command -v prometheus >/dev/null && command -v promtool >/dev/null && exit
(system_package prometheus "the tests of the dashboard and the alerts need prometheus and promtool, which are not installed") \
    || say "without them those tests will be skipped"
