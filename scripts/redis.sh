#!/usr/bin/env bash
# redis.sh: sees to it that a redis-server can be started; the tests use a real one.
. "$(dirname "$0")/lib.sh"

command -v redis-server >/dev/null || system_package redis-server "the tests need redis-server, which is not installed"
