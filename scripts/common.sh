# Shared by the scripts, which source this file with their name in $program, the prefix of their messages.
say() { printf '%s: %s\n' "$program" "$*"; }
fail() { printf '%s: %s\n' "$program" "$*" >&2; exit 1; }

# again COMMAND…: up to three times, since a server may not answer, and `apt-get update` doesn't wait for a lock.
again() { "$@" || { sleep 10; "$@"; } || { sleep 30; "$@"; }; }

# npm_packages FOLDER NAME: installs what package-lock.json in FOLDER names, unless NAME in its node_modules is newer.
npm_packages() {
    local marker="$1/node_modules/$2"
    [ ! -e "$marker" ] || [ "$1/package-lock.json" -nt "$marker" ] || return 0
    say "installing ${2##*/} in $1/node_modules"
    again npm --prefix "$1" ci --no-audit --no-fund --loglevel=error
    touch -h "$marker"
}

# install_packages NAME…: installs packages of Debian, with sudo where the user isn't root; with no NAME, does nothing.
install_packages() {
    [ $# -gt 0 ] || return 0
    local names=("$@") as_root=() log
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || fail "missing: ${names[*]}; have root do: apt-get install ${names[*]}"
        as_root=(sudo)
    fi
    command -v apt-get >/dev/null || fail "missing, and there is no apt-get to install them with: ${names[*]}"
    # The environment is set after sudo, which drops it.
    apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" </dev/null; }
    say "installing packages of the system: ${names[*]}"
    log=$(mktemp)
    install() { apt install --no-install-recommends "${names[@]}"; }
    install_anew() { apt update && install; }
    install >"$log" 2>&1 || again install_anew >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        rm -f "$log"
        fail "apt-get couldn't install ${names[*]}; its last lines are above"
    }
    rm -f "$log"
}
