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

# logfull.sh: a log that fills its disk.  A node that was away comes back to
# more log than its disk has room for, and is killed over that: it frees what
# it has applied while it catches up.

LC_ALL=C
export LC_ALL
. "$(dirname "$0")/../lib.sh"
# Six segments of the log, the reserve, and some room.
SIZE=${SIZE:-480}
ROUNDS=${ROUNDS:-80}
victim=2
cluster_up 3 -g 'reserve 64M' -o 'timeout 10'
disks_up 2560 "$SIZE" 2560

random_file "$CLUSTER/data" 16384
one=$(mnt 1)
overwrite() { put "$CLUSTER/data" "$one/data"; }
count() { grep -c "$1" "$CLUSTER/n$victim/log"; }
more_than() { [ "$(count "$1")" -gt "$2" ]; }
is_current() { dfsctl "$victim" status >/dev/null; }

# The smallest disk is what there is room for, whoever is asked.
must_within "$LIMIT" rooms_equal
room=$(($(stat -f -c '%b * %S' "$one") >> 20))
[ $room -le $((SIZE - 64)) ] && [ $room -gt $((SIZE / 8)) ] ||
    fail "$room MiB shown, on a disk of $SIZE"

ctl kill "$victim" || fail "kill"
must_within "$LIMIT" overwrite
# The log has all of it, more than twice the disk; the tree has it once.
for k in $(count_to "$ROUNDS"); do
	overwrite || fail "write $k"
done
echo last >"$one/last" || fail "write"

# It is killed again and again while it takes in what it has missed.
stood=$(count "stands still")
kills=0
while made=$(count "checkpoint Some"); [ $kills -lt 3 ]; do
	ctl start "$victim" || fail "start"
	must_within "$LIMIT" more_than "checkpoint Some" "$made"
	! is_current || break
	ctl kill "$victim" || fail "kill"
	kills=$((kills + 1))
done
ctl start "$victim" || fail "start"
must_within "$LIMIT" is_current
stood=$(($(count "stands still") - stood))
echo "killed $kills times, its log stood still $stood times"
for n in $NODE_LIST; do
	cmp "$CLUSTER/data" "$(mnt "$n")/data" || fail "node $n: data"
	[ "$(cat "$(mnt "$n")/last")" = last ] || fail "node $n: last"
done
must_within "$LIMIT" all_current
must_trees_equal .
if grep -il panicked "$CLUSTER"/n*/log; then
	fail "a panic in the log"
fi
