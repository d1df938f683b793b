#!/usr/bin/env bash
# clients.sh: installs the JavaScript clients for the tests, at their locked versions, in build/clients.
# Does nothing if they are installed; without node and npm, the tests that need them are skipped.
. "$(dirname "$0")/lib.sh"

if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    say "node and npm are not installed: the tests of the JavaScript clients will be skipped"
    exit 0
fi
mkdir -p build/clients
lock=tests/clients/package-lock.json
if ! cmp -s "$lock" build/clients/installed.json; then
    cp tests/clients/package.json "$lock" build/clients/
    npm ci --prefix build/clients --ignore-scripts --no-audit --no-fund --loglevel=error >&2
    cp "$lock" build/clients/installed.json
fi
