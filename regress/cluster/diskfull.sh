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

# diskfull.sh: disks that fill up.  Room is decided alike on all nodes, with
# ENOSPC; removing works when nothing else does, and then there is room again.
# A node whose disk was filled by somebody else holds up nobody for long, says
# so, and catches up when it has room.

LC_ALL=C
export LC_ALL
. "$(dirname "$0")/../lib.sh"
# Three segments of the log, two reserves, and some room.
SIZE=${SIZE:-640}
cluster_up 3 -g 'reserve 64M' -o 'timeout 10'
disks_up "$SIZE" "$SIZE" "$SIZE"

# no_room FILE: it cannot be written, for the reason given and no other.
no_room() {
	no_room_says=$(LC_ALL=C dd if=/dev/zero of="$1" bs=1M count="$SIZE" \
	    $DD_FSYNC 2>&1) && fail "$1: written to a full disk"
	case $no_room_says in
	*"No space left on device"*) ;;
	*) fail "$1: $no_room_says" ;;
	esac
	rm "$1" || fail "rm $1"
}

random_file "$CLUSTER/data" 64
random_file "$CLUSTER/block" 4096

# --- one disk is filled by somebody else
was=$(leader)
# shellcheck disable=SC2046
set -- $(others "$was")
victim=$1
filler=$CLUSTER/n$victim/db/filler
fill() {
	dd if=/dev/zero of="$filler" bs=1M oflag=append conv=notrunc 2>/dev/null
	dd if=/dev/zero of="$filler" bs=4k oflag=append conv=notrunc 2>/dev/null
}
alarmed() {
	dfsctl "$victim" status >"$CLUSTER/status" && return 1
	grep -q '^alarm: ' "$CLUSTER/status"
}
mkdir "$(mnt "$was")/one" || fail "mkdir"
put "$CLUSTER/data" "$(mnt "$was")/one/kept" || fail "write"

# It hangs meanwhile, so that it cannot tell anybody: what the others agree on
# then is more than it can take.
ctl pause "$victim" || fail "pause"
fill
for k in 1 2 3 4; do
	put "$CLUSTER/block" "$(mnt "$was")/one/$k" || fail "write"
done
ctl resume "$victim" || fail "resume"
must_within "$LIMIT" alarmed
sed -n 's/^alarm: /node '"$victim"': /p' "$CLUSTER/status"

# Now they know: ENOSPC for what takes room, alike on all that serve.
full() {
	fill
	LC_ALL=C put "$CLUSTER/block" "$(mnt "$1")/one/over.$1" \
	    >"$CLUSTER/says" && return 1
	rm -f "$(mnt "$1")/one/over.$1"
	grep -q "No space left on device" "$CLUSTER/says"
}
for n in $(others "$victim"); do
	must_within "$LIMIT" full "$n"
	dfsctl "$n" status >/dev/null || fail "node $n: $(dfsctl "$n" status)"
	mkdir "$(mnt "$n")/dir.$n" || fail "mkdir on node $n"
	rmdir "$(mnt "$n")/dir.$n" || fail "rmdir on node $n"
done
rm "$filler" || fail "rm filler"
must_within "$LIMIT" all_current
for n in $NODE_LIST; do
	must_within "$LIMIT" put "$CLUSTER/block" "$(mnt "$n")/more.$n"
	cmp "$CLUSTER/data" "$(mnt "$n")/one/kept" || fail "node $n: kept"
done

# --- all disks fill up, through the mount
put "$CLUSTER/data" "$(mnt 1)/before" || fail "write"
# The logs, which were kept for the node that was behind, give back their room
# only by and by.
filled() {
	rm -rf "$(mnt 1)/fill" && mkdir "$(mnt 1)/fill" || fail "mkdir"
	i=0
	while put "$CLUSTER/block" "$(mnt 1)/fill/$i" >"$CLUSTER/says"; do
		i=$((i + 1))
		[ $i -lt $((SIZE / 4)) ] || fail "no end of room"
	done
	grep -q "No space left on device" "$CLUSTER/says" ||
	    fail "$(cat "$CLUSTER/says")"
	[ $i -gt 5 ]
}
must_within "$LIMIT" filled
rm -f "$(mnt 1)/fill/$i"
# A program that does not ask close(2) hears of it as well; what room there is
# again by then is filled.
more=0
told() {
	told_rc=0
	if (printf '%08192d' 0 >"$(mnt "$1")/told") 2>/dev/null; then
		more=$((more + 1))
		put "$CLUSTER/block" "$(mnt "$1")/fill/more.$more" >/dev/null
		told_rc=1
	fi
	rm "$(mnt "$1")/told" || fail "rm"
	return $told_rc
}
echo "full with $i files of 4 MiB on disks of $SIZE MiB"
for n in $NODE_LIST; do
	no_room "$(mnt "$n")/over.$n"
	must_within "$LIMIT" told "$n"
done
all_current || fail "not current when full: $(ctl status)"
# What is there is whole, and can be changed.
for n in $NODE_LIST; do
	cmp "$CLUSTER/data" "$(mnt "$n")/before" || fail "node $n: before"
	for k in 0 $((i - 1)); do
		cmp "$CLUSTER/block" "$(mnt "$n")/fill/$k" || fail "node $n: $k"
	done
	mv "$(mnt "$n")/before" "$(mnt "$n")/before.$n" &&
	    mv "$(mnt "$n")/before.$n" "$(mnt "$n")/before" || fail "mv"
	chmod 600 "$(mnt "$n")/before" || fail "chmod"
	# Names and small files have some room of their own.
	mkdir "$(mnt "$n")/name.$n" &&
	    echo small >"$(mnt "$n")/name.$n/small" || fail "names on node $n"
	rm -r "$(mnt "$n")/name.$n" || fail "rm on node $n"
done
must_within "$LIMIT" rooms_equal
rm -r "$(mnt 2)/fill" || fail "rm when full"
for n in $NODE_LIST; do
	must_within "$LIMIT" put "$CLUSTER/block" "$(mnt "$n")/again.$n"
done
all_current || fail "not current with room again: $(ctl status)"
grep -il panicked "$CLUSTER"/n*/log && fail "a panic in the log"
must_trees_equal .
