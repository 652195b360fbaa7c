#!/bin/sh
# Copyright (c) 2026 The dfsd authors
#
# Permission to use, copy, modify, and distribute this software for any
# purpose with or without fee is hereby granted, provided that the above
# copyright notice and this permission notice appear in all copies.
#
# THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES
# WITH REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED WARRANTIES OF
# MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR
# ANY SPECIAL, DIRECT, INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES
# WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN
# ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF
# OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.

# emptied.sh: a node that lost its data directory is not taken for the one that
# it was: it would have forgotten what it acknowledged and for whom it voted.
# With it there is no majority where there was none without.

. "$(dirname "$0")/../lib.sh"
cluster_up 3 -o 'timeout 3'

empty() {
	for n in "$@"; do
		ctl stop "$n" || fail "stop"
		rm -rf "$CLUSTER/n$n/db" && mkdir "$CLUSTER/n$n/db" &&
		    chown _dfsd:_dfsd "$CLUSTER/n$n/db" &&
		    chmod 700 "$CLUSTER/n$n/db" || exit 1
	done
}
says() { grep -q "$2" "$CLUSTER/n$1/log"; }
# no_quorum N: it knows that it has none.
no_quorum() { dfsctl "$1" status | grep -q '^node.*no quorum'; }

# --- one of three
was=$(leader)
# shellcheck disable=SC2046
set -- $(others "$was")
victim=$1 rest=$2
random_file "$CLUSTER/data" 64
# What only the two others have: a majority, one of which forgets it.
ctl stop "$rest" || fail "stop"
put "$CLUSTER/data" "$(mnt "$was")/kept" || fail "write"
empty "$victim"
ctl kill "$was" || fail "kill"
ctl start "$rest" "$victim" || fail "start"

must_within "$LIMIT" says "$rest" "has another data directory than before"
must_within "$LIMIT" says "$victim" "knows another data directory of this node"
must_within "$LIMIT" says "$victim" "no vote before node .* was met"
for n in $rest $victim; do
	must_within "$LIMIT" no_quorum "$n"
	put "$CLUSTER/data" "$(mnt "$n")/more" >"$CLUSTER/says" &&
	    fail "node $n: written without a majority"
done

ctl start "$was" || fail "start"
ctl wait "$was" "$rest" || fail "not current"
for n in $was $rest; do
	cmp "$CLUSTER/data" "$(mnt "$n")/kept" || fail "node $n: kept"
	put "$CLUSTER/data" "$(mnt "$n")/more.$n" || fail "node $n: write"
done
must_within "$LIMIT" says "$was" "has another data directory than before"
dfsctl "$victim" status >/dev/null && fail "node $victim is current"

# --- a new cluster begins when all have met
# shellcheck disable=SC2086
empty $NODE_LIST
ctl start 1 2 || fail "start"
for n in 1 2; do
	must_within "$LIMIT" says "$n" "no vote before node 3 was met"
	dfsctl "$n" status >/dev/null && fail "node $n: current without node 3"
done
ctl start 3 || fail "start"
# shellcheck disable=SC2086
ctl wait $NODE_LIST || fail "not current"
ctl stop 3 || fail "stop"
# From then on any majority will do.
ctl stop 1 2 && ctl start 1 2 && ctl wait 1 2 || fail "not current"
