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

# partition.sh: the leader is cut off.  The majority goes on without an error;
# on the cut-off node writes fail, and it says so.  When it hears the others
# again it follows: nothing acknowledged is lost, and the trees are equal.

LC_ALL=C
export LC_ALL
. "$(dirname "$0")/../lib.sh"
BOUND=5
cluster_up 3 -o "timeout $BOUND"
grep -q '^net=netns' "$CLUSTER/cluster" || skip "no network namespaces"

was=$(leader)
rest=$(others "$was")
for n in $NODE_LIST; do
	mkdir "$(mnt "$n")/w$n" || fail "mkdir"
	writer "$n" "$(mnt "$n")/w$n"
done
for n in $NODE_LIST; do
	must_within "$LIMIT" writer_has "$n" 30
done
ctl cut "$was" || fail "cut"

# What is asked of the old leader ends in an error.
stopped() { [ -e "$CLUSTER/w.$was.err" ]; }
must_within $((BOUND + 5)) stopped
grep -qi "input/output error" "$CLUSTER/w.$was.err" ||
    fail "$(cat "$CLUSTER/w.$was.err")"
timeout -s KILL $((BOUND + 5)) touch "$(mnt "$was")/alone" 2>/dev/null &&
    fail "a write on the node that is cut off succeeded"

# The others have a leader among them, and their writers saw nothing.
has_new_leader() {
	for n in $rest; do
		dfsctl "$n" status | awk -v was="$was" '
			$1 == "*" { found = $2 != was } END { exit !found }' ||
		    return 1
	done
}
must_within "$LIMIT" has_new_leader
for n in $rest; do
	writer_goes_on "$n" 50
	dfsctl "$n" status >/dev/null || fail "node $n: $(dfsctl "$n" status)"
done
knows() {
	dfsctl "$was" status >"$CLUSTER/status" && return 1
	grep -q '^node.*no quorum' "$CLUSTER/status"
}
must_within "$LIMIT" knows

# What the others have changed must win over what the old leader remembers.
# shellcheck disable=SC2086
set -- $rest
echo majority >"$(mnt "$1")/decided" || fail "write on node $1"
mv "$(mnt "$1")/w$was" "$(mnt "$1")/moved" || fail "mv on node $1"

ctl heal || fail "heal"
ctl wait "$was" || fail "node $was: not current again"
for n in $rest; do
	writer_goes_on "$n" 20
done
writers_stop
for n in $rest; do
	writer_no_error "$n"
	echo "writer on node $n: $(writer_count "$n") files," \
	    "longest gap $(writer_gap "$n") ms"
done
must_trees_equal .
for m in $NODE_LIST; do
	for n in $rest; do
		writer_kept "$n" "$(mnt "$m")/w$n" ||
		    fail "writer $n: lost on node $m"
	done
	writer_kept "$was" "$(mnt "$m")/moved" ||
	    fail "writer $was: lost on node $m"
	[ "$(cat "$(mnt "$m")/decided")" = majority ] || fail "node $m: decided"
done

# A follower is cut off: nobody else notices.
was=$(leader)
# shellcheck disable=SC2046
set -- $(others "$was")
cut=$1
mkdir "$(mnt "$was")/second" || fail "mkdir"
writer s "$(mnt "$was")/second"
must_within "$LIMIT" writer_has s 10
ctl cut "$cut" || fail "cut"
writer_goes_on s 100
is_leader "$was" || fail "node $was does not lead any more"
ctl heal || fail "heal"
ctl wait "$cut" || fail "node $cut: not current again"
writers_stop
writer_no_error s
must_trees_equal .
