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

# kills.sh: each process killed by itself, and a leader that hangs for a
# while.  What the others do goes on without an error.

LC_ALL=C
export LC_ALL
. "$(dirname "$0")/../lib.sh"
cluster_up 3

pid_of() { ctl pids "$1" | awk -v name="$2" '$1 == name { print $2 }'; }
is_dead() { ! kill -0 "$1" 2>/dev/null; }
all_dead() {
	for pid in $1; do
		is_dead "$pid" || return 1
	done
}
node_gone() { [ -z "$(ctl pids "$1")" ]; }
# A dead mount is still there, and nobody writes below it by mistake.
dead_mount() {
	mount | grep -q " on $(mnt "$1") " || return 1
	dead_says=$(LC_ALL=C ls "$(mnt "$1")/." 2>&1) && return 1
	case $dead_says in
	*"not connected"*|*"not configured"*) ;;
	*) return 1 ;;
	esac
}

# begin TEST NODE: a writer on each node but this one.
begin() {
	test=$1
	victim=$2
	rest=$(others "$victim")
	for n in $rest; do
		mkdir "$(mnt "$n")/$test.$n" || fail "$test: mkdir on node $n"
		writer "$test.$n" "$(mnt "$n")/$test.$n"
	done
	for n in $rest; do
		must_within "$LIMIT" writer_has "$test.$n" 20
	done
}

# others_go_on: they have made 20 files since, and seen no error.
others_go_on() {
	for n in $rest; do
		writer_goes_on "$test.$n" 20
		writer_no_error "$test.$n"
	done
}

end() {
	writers_stop
	for n in $rest; do
		writer_no_error "$test.$n"
		echo "$test: writer on node $n: longest gap" \
		    "$(writer_gap "$test.$n") ms"
		for m in $NODE_LIST; do
			writer_kept "$test.$n" "$(mnt "$m")/$test.$n" ||
			    fail "$test: writer $n: lost on node $m"
		done
	done
	must_trees_equal .
}

# raftd of the leader: its dfsd ends with an error and leaves a dead mount,
# which the next start replaces.
begin raftd "$(leader)"
ctl kill -r "$victim" || fail "kill raftd"
must_within "$LIMIT" node_gone "$victim"
must_within "$LIMIT" dead_mount "$victim"
tail -n 20 "$(ctl log "$victim")" | grep -q 'lost child: raftd' ||
    fail "raftd: no lost child in the log"
others_go_on
ctl start "$victim" || fail "start"
ctl wait "$victim" || fail "raftd: node $victim: not current"
end

# fused: the mount comes back by itself; raftd is not touched.
victim=$(leader)
begin fused "$victim"
raftd=$(pid_of "$victim" raftd)
old=$(pid_of "$victim" fused)
echo open >"$(mnt "$victim")/open"
exec 5<"$(mnt "$victim")/open"
ctl kill -f "$victim" || fail "kill fused"
serves() {
	new=$(pid_of "$victim" fused)
	[ -n "$new" ] && [ "$new" != "$old" ] &&
	    [ "$(cat "$(mnt "$victim")/open")" = open ]
}
must_within "$LIMIT" serves
[ "$(pid_of "$victim" raftd)" = "$raftd" ] || fail "fused: raftd was restarted"
grep -q "lost child: fused $(mnt "$victim")" "$(ctl log "$victim")" ||
    fail "fused: no lost child in the log"
read -r line <&5 && fail "a file open before reads $line"
exec 5<&-
is_leader "$victim" || fail "fused: node $victim does not lead any more"
others_go_on
echo more >"$(mnt "$victim")/open" || fail "fused: write"
end

# The parent: its children see it and end; the mount stays, dead.
begin parent "$(leader)"
children=$(ctl pids "$victim" | awk '$1 != "parent" { print $2 }')
ctl kill -p "$victim" || fail "kill parent"
must_within "$LIMIT" all_dead "$children"
must_within "$LIMIT" dead_mount "$victim"
others_go_on
ctl start "$victim" || fail "start"
ctl wait "$victim" || fail "parent: node $victim: not current"
end

# The leader hangs for five seconds.  The others choose another one; when it
# runs again it must not answer from what it knew, not even the first open.
begin pause "$(leader)"
# shellcheck disable=SC2086
set -- $rest
echo before >"$(mnt "$1")/stale"
must_within "$LIMIT" is_there "$(mnt "$victim")/stale"
ctl pause "$victim" || fail "pause"
paused=$(now_ms)
must_within "$LIMIT" is_not_leader "$victim"
others_go_on
echo after >"$(mnt "$1")/stale" || fail "pause: write"
cat "$(mnt "$victim")/stale" >"$CLUSTER/stale" &
reader=$!
five_seconds() { [ $(($(now_ms) - paused)) -ge 5000 ]; }
must_within "$LIMIT" five_seconds
ctl resume "$victim" || fail "resume"
wait $reader || fail "pause: read"
[ "$(cat "$CLUSTER/stale")" = after ] || fail "pause: node $victim: old data"
ctl wait "$victim" || fail "pause: node $victim: not current"
echo again >"$(mnt "$victim")/stale" || fail "pause: write on node $victim"
[ "$(cat "$(mnt "$1")/stale")" = again ] || fail "pause: node $1: old data"
end
