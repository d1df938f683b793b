# Sourced by the other scripts: changes to the project folder; messages; installation of system packages.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'anyclass: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# system_package PACKAGE WHY...: installs a Debian package, or fails with instructions.
system_package() {
    local package=$1
    shift
    command -v apt-get >/dev/null || die "$*; install it ($package on Debian) and try again"
    [ "$(id -u)" = 0 ] || die "$*; run 'sudo apt-get install $package' and try again"
    say "$*; installing Debian's $package"
    local log install
    log=$(mktemp)
    # A new machine may still be installing its updates: wait for its lock.
    install=(apt-get -o DPkg::Lock::Timeout=300 install -qq -y --no-install-recommends "$package")
    if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive "${install[@]}"; } >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        die "apt-get could not install $package (above)"
    fi
    rm -f "$log"
}
