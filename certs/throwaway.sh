#!/bin/sh
# Makes a throw-away neighbourhood: the state of a reconst and the profiles of a few members.
#
#   certs/throwaway.sh DIR [RELAYS] [HOST]
#
# DIR must not exist. RELAYS is how many relays there are (default 2), HOST where they reach reconst (default 127.0.0.1).
# RECONST is the program to use (default: the one that `cargo run --release --bin reconst` builds).
set -eu

if [ $# -lt 1 ] || [ $# -gt 3 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 64
fi
dir=$1
relays=${2:-2}
host=${3:-127.0.0.1}
here=$(dirname "$0")

reconst() {
    if [ -n "${RECONST:-}" ]; then
        "$RECONST" "$@"
    else
        cargo run --quiet --release --manifest-path "$here/../Cargo.toml" --bin reconst -- "$@"
    fi
}

(umask 077 && mkdir "$dir" && mkdir "$dir/profiles")
reconst init --state "$dir/state" --public "$host"
reconst lan add elm --state "$dir/state" --id 15
reconst user add user1 --state "$dir/state" --lan elm --profile "$dir/profiles/user1.toml"
i=1
while [ "$i" -le "$relays" ]; do
    reconst relay add "relay$i" --state "$dir/state" --lan elm --profile "$dir/profiles/relay$i.toml"
    i=$((i + 1))
done

cat <<MESSAGE

Now, each in a terminal of its own:
  reconst run --state $dir/state --bind $host
  peer-relay run --profile $dir/profiles/relay1.toml
  proxy-local run --profile $dir/profiles/user1.toml
MESSAGE
