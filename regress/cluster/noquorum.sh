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

# noquorum.sh: with two of three nodes gone the third changes nothing and
# hangs nobody: every call ends within the timeout of the mount.  When one is
# back all goes on by itself, with what had been acknowledged.

LC_ALL=C
export LC_ALL
. "$(dirname "$0")/../lib.sh"
BOUND=3
# What may pass on a busy machine after the bound.
SLACK=5
cluster_up 3 -o "timeout $BOUND"

left=1
at=$(mnt $left)
random_file "$CLUSTER/data" 40
mkdir "$at/d" || fail "mkdir"
for i in 1 2 3 4 5; do
	put "$CLUSTER/data" "$at/d/kept.$i" || fail "write"
	put "$CLUSTER/data" "$at/d/try.$i" || fail "write"
done
writer w "$at/d"
must_within "$LIMIT" writer_has w 20
exec 5<"$at/d/kept.1" 6<"$at/d/kept.3" 7>>"$at/d/try.1"
# shellcheck disable=SC2046
ctl kill $(others $left) || fail "kill"

# within_bound COMMAND ...: it ends, well or not, in time.
within_bound() {
	bound_start=$(now_ms)
	timeout -s KILL $((BOUND + SLACK)) "$@" >"$CLUSTER/out" 2>&1
	bound_rc=$?
	bound_ms=$(($(now_ms) - bound_start))
	[ "$bound_ms" -lt $(((BOUND + SLACK) * 1000)) ] ||
	    fail "$bound_ms ms: $*"
	return $bound_rc
}
must_fail() {
	within_bound "$@" && fail "succeeded without a quorum: $*"
	# OpenBSD lets no other error of a lookup through than ENXIO.
	grep -qiE "input/output error|read-only|not configured" \
	    "$CLUSTER/out" ||
	    fail "$(head -n 1 "$CLUSTER/out"): $*"
}

stopped() { [ -e "$CLUSTER/w.w.err" ]; }
must_within $((BOUND + SLACK)) stopped
# While the loss is not known it is waited for a majority.
must_fail touch "$at/d/new"
[ "$bound_ms" -ge $((BOUND * 500)) ] || fail "$bound_ms ms: has not waited"
must_fail mkdir "$at/newdir"
must_fail mv "$at/d/try.1" "$at/d/moved"
must_fail rm -f "$at/d/try.2"
must_fail chmod 600 "$at/d/try.3"
must_fail ln "$at/d/try.4" "$at/d/link"
must_fail sh -c "echo x >>'$at/d/try.5'"
# These answer or fail, and in time.
within_bound ls -l "$at"
within_bound stat "$at"
within_bound stat "$at/d/kept.1"
within_bound cat "$at/d/kept.1"
within_bound df "$at" || fail "df: $(cat "$CLUSTER/out")"
within_bound ls "$at/d"
# A file that is open can be read.
cmp "$CLUSTER/data" - <&5 || fail "open file: differs"
exec 5<&-

says_no_quorum() {
	within_bound "$BIN/dfsctl" -s "$(ctl sock $left)" status && return 1
	grep -q '^node.*no quorum' "$CLUSTER/out"
}
must_within "$LIMIT" says_no_quorum
# The loss is known now: errors come at once.
for i in 1 2 3; do
	must_fail touch "$at/d/new"
	[ "$bound_ms" -lt 2000 ] || fail "$bound_ms ms though the loss is known"
done

# says REASON COMMAND ...
says() {
	says_reason=$1
	shift
	within_bound "$@" && fail "succeeded without a quorum: $*"
	grep -q "$says_reason" "$CLUSTER/out" || fail "$*: $(cat "$CLUSTER/out")"
	[ "$bound_ms" -lt 2000 ] || fail "$bound_ms ms though the loss is known: $*"
}
if [ "$(uname -s)" = Linux ]; then
	for new in "mkdir $at/new" "touch $at/new" "ln $at/d/try.4 $at/new" \
	    "ln -s x $at/new" "mv $at/d/try.4 $at/new" "mkfifo $at/new" \
	    "stat $at/new" "cat $at/d/kept.2"; do
		# shellcheck disable=SC2086
		says "Input/output error" $new
	done
	for there in "rm -f $at/d/try.2" "chmod 600 $at/d/try.3" \
	    "chown 1:1 $at/d/try.3"; do
		# shellcheck disable=SC2086
		says "Read-only file system" $there
	done
	# By what was open before: read, not written.
	cmp "$CLUSTER/data" - <&6 || fail "open file: differs"
	says "Read-only file system" env LC_ALL=C python3 -c 'import os
os.write(7, b"x")'
	for look in "ls -l $at/d" "stat $at/d/kept.1" "ls $at"; do
		# shellcheck disable=SC2086
		within_bound $look || fail "$look: $(cat "$CLUSTER/out")"
	done
fi

exec 6<&- 7>&-
writers_stop
ctl start 2 || fail "start"
ctl wait $left 2 || fail "not current"
must_within "$LIMIT" put "$CLUSTER/data" "$at/d/after"
all_kept() {
	writer_kept w "$(mnt "$1")/d" || fail "lost on node $1"
	for i in 1 2 3; do
		cmp "$CLUSTER/data" "$(mnt "$1")/d/kept.$i" ||
		    fail "lost on node $1: kept.$i"
	done
}
all_kept $left
all_kept 2
ctl start 3 || fail "start"
ctl wait 3 || fail "not current"
all_kept 3
must_trees_equal .
