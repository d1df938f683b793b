#!/usr/bin/env bash
# redis.sh: installs redis-server if missing; the tests use a real one.
. "$(dirname "$0")/lib.sh"

command -v redis-server >/dev/null || system_package redis-server "the tests need redis-server, which is not installed"
