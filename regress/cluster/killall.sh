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

# killall.sh: all nodes are killed at once under load.  After a restart
# every file whose fsync had returned is there, whole, on every node, and the
# trees are equal.  The leader comes back first, and does not lead on in its old
# term: the others may have entries of that which its own disk has not.

. "$(dirname "$0")/../lib.sh"
ROUNDS=${ROUNDS:-2}
cluster_up 3

# The terms that node $1 has led, in order.
led() { sed -n 's/^leader, term //p' "$CLUSTER/n$1/log"; }

round=0
while [ "$round" -lt "$ROUNDS" ]; do
	round=$((round + 1))
	for n in $NODE_LIST; do
		mkdir "$(mnt "$n")/r$round.$n" || fail "mkdir on node $n"
		writer "$round.$n" "$(mnt "$n")/r$round.$n"
	done
	for n in $NODE_LIST; do
		must_within "$LIMIT" writer_has "$round.$n" 100
	done
	was=$(leader)
	# shellcheck disable=SC2086
	ctl kill $NODE_LIST || fail "kill"
	writers_stop
	# shellcheck disable=SC2046
	ctl start "$was" $(others "$was") || fail "start"
	# shellcheck disable=SC2086
	ctl wait $NODE_LIST || fail "not current again"
	twice=$(led "$was" | sort -n | uniq -d)
	[ -z "$twice" ] || fail "node $was went on in term $twice"
	for n in $NODE_LIST; do
		echo "round $round: writer $n: $(writer_count "$round.$n") files"
	done
	r=0
	while [ "$r" -lt "$round" ]; do
		r=$((r + 1))
		for n in $NODE_LIST; do
			for m in $NODE_LIST; do
				writer_kept "$r.$n" "$(mnt "$m")/r$r.$n" ||
				    fail "round $r, writer $n: lost on node $m"
			done
		done
	done
	must_trees_equal .
done
