#!/usr/bin/env bash
# redis_secret.sh: prints a Secret with a new random password, for `kubectl apply -f -`. Nothing is written to disk, and
# no command line has the password.
. "$(dirname "$0")/lib.sh"

cat <<YAML
apiVersion: v1
kind: Secret
metadata:
  name: anyclass-redis
  namespace: anyclass
type: Opaque
stringData:
  password: $(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
YAML
