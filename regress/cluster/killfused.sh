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


# killfused.sh: fused is killed, loses raftd or is stopped while programs on
# all nodes make and remove names in one directory.  Then the programs hold the
# directory's lock and wait for fused, and fused, which has to tell the kernel
# of the others' names, waits for the lock: neither may stay like that.

. "$(dirname "$0")/../lib.sh"
cluster_up 3

# A dead fused is seen and replaced in a few seconds; a stop has 25.
SERVE_LIMIT=20
STOP_LIMIT=25

BUSY=

# busy NAME DIRECTORY: a program that works there by its path; with "cwd" as
# third argument, as its current directory.  Errors do not end it.  Each name
# that it has made and removed is a byte in $CLUSTER/busy.NAME.
busy() {
	: >"$CLUSTER/busy.$1"
	python3 -B -c '
import os, sys, time
name, where, how, notes = sys.argv[1:]
if how == "cwd":
    os.chdir(where)
    where = "."
out = os.open(notes, os.O_WRONLY | os.O_APPEND)
while os.path.exists(notes):
    for i in range(50):
        path = f"{where}/{name}.{i}"
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
            os.unlink(path)
            os.write(out, b".")
        except OSError:
            time.sleep(0.01)
' "$1" "$2" "${3:-path}" "$CLUSTER/busy.$1" </dev/null >/dev/null 2>&1 &
	BUSY="$BUSY $!"
}

size() { wc -c <"$CLUSTER/busy.$1"; }
has() { [ "$(size "$1")" -ge "$2" ]; }

# They have all made 50 names more, and none waits for ever.
all_go_on() {
	for n in $NODE_LIST; do
		for i in 1 2; do
			want=$(($(size "$n.$i") + 50))
			wait_until "$1" has "$n.$i" $want ||
			    give_up "$2: program $n.$i hangs"
		done
	done
}

# Frees whoever hangs, or the test would as well.
give_up() {
	case $(uname -s) in
	Linux)	ps -eLo pid,tid,stat,comm ;;
	*)	ps -axo pid,stat,wchan,comm ;;
	esac | grep ' D' >&2
	how=-f
	[ "$(uname -s)" != Linux ] || how="-f -l"
	for n in $NODE_LIST; do
		# shellcheck disable=SC2086
		umount $how "$(mnt "$n")"
	done 2>/dev/null
	fail "$@"
}

pid_of() { ctl pids "$1" | awk -v name="$2" '$1 == name { print $2 }'; }
# Reaped, with all its threads.
no_process() { ! kill -0 "$1" 2>/dev/null; }
node_gone() { [ -z "$(ctl pids 1)" ]; }
serves() {
	new=$(pid_of 1 fused)
	[ -n "$new" ] && [ "$new" != "$old" ] && no_process "$old"
}
dead_mount() {
	mount | grep -q " on $(mnt 1) " || return 1
	dead_says=$(LC_ALL=C ls "$(mnt 1)/." 2>&1) && return 1
	case $dead_says in
	*"not connected"*|*"not configured"*) ;;
	*) return 1 ;;
	esac
}

mkdir "$(mnt 1)/d" || fail "mkdir"
for n in $NODE_LIST; do
	must_within "$LIMIT" is_there "$(mnt "$n")/d"
	busy "$n.1" "$(mnt "$n")/d"
	busy "$n.2" "$(mnt "$n")/d"
done
all_go_on "$LIMIT" begin

for round in 1 2 3; do
	old=$(pid_of 1 fused)
	ctl kill -f 1 || give_up "kill fused"
	wait_until "$SERVE_LIMIT" serves || give_up "fused: not replaced"
	all_go_on "$SERVE_LIMIT" "fused killed"
done

# dfsd ends with raftd, and the mount is dead.
old=$(pid_of 1 fused)
ctl kill -r 1 || give_up "kill raftd"
wait_until "$SERVE_LIMIT" node_gone || give_up "raftd: dfsd goes on"
wait_until "$SERVE_LIMIT" dead_mount || give_up "raftd: no dead mount"
wait_until "$SERVE_LIMIT" no_process "$old" || give_up "raftd: fused goes on"
ctl start 1 || fail "start"
ctl wait 1 || fail "raftd: not current"
all_go_on "$LIMIT" "raftd killed"

# A clean stop below the feet of programs.
for round in 1 2; do
	busy 1.3 "$(mnt 1)/d" cwd
	must_within "$LIMIT" has 1.3 50
	old=$(pid_of 1 fused)
	start=$(now_ms)
	ctl stop 1 || give_up "stop: does not end"
	took=$(($(now_ms) - start))
	echo "stop $round: $took ms"
	[ $took -le $((STOP_LIMIT * 1000)) ] || give_up "stop: $took ms"
	no_process "$old" || give_up "stop: fused goes on"
	mount | grep -q " on $(mnt 1) " && give_up "stop: still mounted"
	rm "$CLUSTER/busy.1.3"
	wait_until "$SERVE_LIMIT" no_process "${BUSY##* }" ||
	    give_up "stop: a program hangs"
	ctl start 1 || fail "start"
	ctl wait 1 || fail "stop: not current"
	all_go_on "$LIMIT" stop
done

rm "$CLUSTER"/busy.*
for pid in $BUSY; do
	wait_until "$SERVE_LIMIT" no_process "$pid" || give_up "a program hangs"
done
