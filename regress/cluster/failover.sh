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

# failover.sh: the leader is killed while a writer on each other node creates
# and fsyncs.  No writer sees an error, all go on, nothing is lost; and the
# killed node, started again, has the same tree.

. "$(dirname "$0")/../lib.sh"
ROUNDS=${ROUNDS:-2}
cluster_up 3

round=0
while [ "$round" -lt "$ROUNDS" ]; do
	round=$((round + 1))
	was=$(leader)
	rest=$(others "$was")
	for n in $rest; do
		mkdir "$(mnt "$n")/r$round.$n" || fail "mkdir on node $n"
		writer "$round.$n" "$(mnt "$n")/r$round.$n"
	done
	for n in $rest; do
		must_within "$LIMIT" writer_has "$round.$n" 50
	done
	ctl kill "$was" || fail "kill"
	must_within "$LIMIT" is_not_leader "$was"
	for n in $rest; do
		writer_goes_on "$round.$n" 50
	done
	writers_stop
	for n in $rest; do
		writer_no_error "$round.$n"
		echo "round $round: node $was killed, writer on node $n:" \
		    "$(writer_count "$round.$n") files," \
		    "longest gap $(writer_gap "$round.$n") ms"
	done
	ctl start "$was" || fail "start"
	ctl wait "$was" || fail "node $was: not current again"
	for n in $rest; do
		for m in $NODE_LIST; do
			writer_kept "$round.$n" "$(mnt "$m")/r$round.$n" ||
			    fail "writer $n: lost on node $m"
		done
	done
	must_trees_equal .
done
