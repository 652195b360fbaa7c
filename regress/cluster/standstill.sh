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

# standstill.sh: a majority whose logs have filled their disks while a node was
# away.  Nothing is agreed on any more, and that is said; when the node is back
# all go on by themselves.

LC_ALL=C
export LC_ALL
. "$(dirname "$0")/../lib.sh"
# Six segments of the log, the reserve, and some room.
SIZE=${SIZE:-480}
cluster_up 3 -g 'reserve 64M' -o 'timeout 5'
disks_up 2048 "$SIZE" "$SIZE"

random_file "$CLUSTER/data" 4096
put "$CLUSTER/data" "$(mnt 2)/data" || fail "write"
ctl kill 1 || fail "kill"

# Each takes room in the log and none in the tree, until there is none.
python3 -B - "$(mnt 2)/data" >"$CLUSTER/last" <<'EOF' || fail "see above"
import errno, os, sys

n = 0
try:
    while n < 100_000:
        os.setxattr(sys.argv[1], "user.n", str(n + 1).encode().ljust(60_000))
        n += 1
except OSError as e:
    assert e.errno == errno.EIO, e
print(n)
EOF
echo "$(cat "$CLUSTER/last") changes"
for n in 2 3; do
	dfsctl "$n" status && fail "node $n: current"
done >"$CLUSTER/status"
[ "$(grep -c '^node.*not current' "$CLUSTER/status")" -eq 2 ] &&
    grep -q '^alarm: log: no room' "$CLUSTER/status" ||
    fail "$(cat "$CLUSTER/status")"
# Whoever leads then knows of nobody what he has.
for n in 2 3; do
	ctl kill "$n" || fail "kill"
	ctl start "$n" || fail "start"
done

ctl start 1 || fail "start"
must_within "$LIMIT" all_current
# The last one that was answered, or the one that was not.
for n in $NODE_LIST; do
	python3 -B - "$(mnt "$n")/data" "$(cat "$CLUSTER/last")" <<'EOF' ||
import os, sys

got, last = int(os.getxattr(sys.argv[1], "user.n")), int(sys.argv[2])
assert got in (last, last + 1), (got, last)
EOF
	    fail "node $n: see above"
	must_within "$LIMIT" put "$CLUSTER/data" "$(mnt "$n")/new.$n"
done
must_trees_equal .
if grep -il panicked "$CLUSTER"/n*/log; then
	fail "a panic in the log"
fi
