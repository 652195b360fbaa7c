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

# lockcmd.sh: dfsctl lock on several nodes, in all the ways in which it ends;
# and mounts whose locks are local.

. "$(dirname "$0")/../lib.sh"
cluster_up 3

EX_USAGE=64 EX_NOINPUT=66 EX_UNAVAILABLE=69 EX_SOFTWARE=70 EX_OSERR=71
EX_TEMPFAIL=75
JOBS=

# exits STATUS N ...: dfsctl on node N with these arguments ends like that.
exits() {
	exits_want=$1
	shift
	dfsctl "$@" </dev/null >"$CLUSTER/out" 2>"$CLUSTER/err"
	exits_rc=$?
	[ $exits_rc -eq "$exits_want" ] ||
	    fail "$*: exits $exits_rc, not $exits_want: $(cat "$CLUSTER/err")"
}

# holder N PATH: holds the lock until release; its exit status in
# $CLUSTER/rc.N.
holder() {
	rm -f "$CLUSTER/rc.$1" "$CLUSTER/fence.$1" "$CLUSTER/term.$1"
	: >"$CLUSTER/hold.$1"
	(
		trap - EXIT HUP INT TERM
		dfsctl "$1" lock "$2" sh -c '
			trap "echo >$0/term.$1; exit 9" TERM
			echo "$DFSD_LOCK_FENCE" >"$0/fence.$1"
			while [ -e "$0/hold.$1" ]; do sleep 0.05; done
			exit 3' "$CLUSTER" "$1" 2>"$CLUSTER/err.$1"
		echo $? >"$CLUSTER/rc.$1"
	) </dev/null &
	JOBS="$JOBS $!"
}
holds() { [ -s "$CLUSTER/fence.$1" ]; }
ended() { [ -s "$CLUSTER/rc.$1" ] && [ "$(cat "$CLUSTER/rc.$1")" = "$2" ]; }
release() { rm -f "$CLUSTER/hold.$1"; }
waits() { dfsctl "$1" show locks | grep -q waits; }
none() { [ "$(dfsctl "$1" show locks | wc -l)" -eq 1 ]; }

mkdir "$(mnt 1)/d" || fail "mkdir"
echo x >"$(mnt 1)/d/f" || fail "write"
for n in $NODE_LIST; do
	must_within "$LIMIT" is_there "$(mnt "$n")/d/f"
done

# The command's own status, its output, its arguments.
exits 0 1 lock "$(mnt 1)/d/f" true
exits 7 2 lock "$(mnt 2)/d/f" sh -c 'exit 7'
exits 137 3 lock /d/f sh -c 'kill -9 $$'
exits 0 1 lock -w 0 /d/f echo a -w b
[ "$(cat "$CLUSTER/out")" = "a -w b" ] || fail "out: $(cat "$CLUSTER/out")"
exits 0 1 lock -w 5 "$(mnt 1)/d/../d/./f" sh -c 'test "$DFSD_LOCK_FENCE" -gt 0'
exits 0 1 lock /d true

# What cannot be.
exits $EX_USAGE 1 lock
exits $EX_USAGE 1 lock /d/f
exits $EX_USAGE 1 lock -w x /d/f true
exits $EX_NOINPUT 1 lock "$(mnt 1)/none" true
exits $EX_NOINPUT 1 lock /d/f/none true
exits $EX_OSERR 1 lock /d/f "$CLUSTER/no-such-command"
"$BIN/dfsctl" -s "$CLUSTER/none" lock /d/f true 2>/dev/null
[ $? -eq $EX_UNAVAILABLE ] || fail "no socket"
must_within "$LIMIT" none 1

# One at a time, over nodes, subtree or mount point; with flock(2) as well.
holder 1 "$(mnt 1)/d/f"
must_within "$LIMIT" holds 1
exits $EX_TEMPFAIL 2 lock -w 0 "$(mnt 2)/d/f" true
exits $EX_TEMPFAIL 3 lock -w 1 /d/f true
exits 0 3 lock -w 0 /d true
# One that is released in time.
(
	trap - EXIT HUP INT TERM
	dfsctl 3 lock -w 100 /d/f true
	echo $? >"$CLUSTER/rc.w"
) </dev/null &
JOBS="$JOBS $!"
must_within "$LIMIT" waits 3
is_there "$CLUSTER/rc.w" && fail "lock -w: has not waited"
release 1
must_within "$LIMIT" ended 1 3
must_within "$LIMIT" ended w 0
holder 1 "$(mnt 1)/d/f"
must_within "$LIMIT" holds 1
if python3 -B -c '
import fcntl, sys
fcntl.flock(open(sys.argv[1]), fcntl.LOCK_SH | fcntl.LOCK_NB)' \
    "$(mnt 3)/d/f" 2>/dev/null; then
	[ "$(uname -s)" != Linux ] || fail "flock: not excluded"
fi
holder 2 "$(mnt 2)/d/f"
must_within "$LIMIT" waits 3
holds 2 && fail "two hold the lock"
release 1
must_within "$LIMIT" ended 1 3
must_within "$LIMIT" holds 2
[ "$(cat "$CLUSTER/fence.2")" -gt "$(cat "$CLUSTER/fence.1")" ] || fail "fence"

# Who is killed gives his lock back; a signal reaches the command.
holder 1 /d/f
must_within "$LIMIT" waits 2
release 2
must_within "$LIMIT" ended 2 3
must_within "$LIMIT" holds 1
pid=$(dfsctl 2 -j show locks | sed -n 's/.*"pid":\([0-9]*\).*/\1/p')
kill -TERM "$pid" || fail "kill $pid"
must_within "$LIMIT" ended 1 9
must_within "$LIMIT" none 2

# The lock is lost: its node hears no other one.
if grep -q '^net=netns' "$CLUSTER/cluster"; then
	for n in $NODE_LIST; do
		is_leader "$n" || cut=$n
	done
	holder "$cut" /d/f
	must_within "$LIMIT" holds "$cut"
	# shellcheck disable=SC2046
	set -- $(others "$cut")
	holder "$1" /d/f
	must_within "$LIMIT" waits "$2"
	ctl cut "$cut" || fail "cut"
	must_within "$LIMIT" holds "$1"
	must_within "$LIMIT" ended "$cut" $EX_SOFTWARE
	is_there "$CLUSTER/term.$cut" || fail "the command was not told"
	grep -q "lock lost" "$CLUSTER/err.$cut" || fail "$(cat "$CLUSTER/err.$cut")"
	[ "$(cat "$CLUSTER/fence.$1")" -gt "$(cat "$CLUSTER/fence.$cut")" ] ||
	    fail "fence"
	exits $EX_UNAVAILABLE "$cut" lock -w 0 /d/f true
	ctl heal || fail "heal"
	ctl wait "$cut" || fail "node $cut: not current again"
	# It may take a moment until the node believes in its quorum again.
	is_taken() {
		dfsctl "$cut" lock -w 0 /d/f true
		[ $? -eq $EX_TEMPFAIL ]
	}
	must_within "$LIMIT" is_taken
	release "$1"
	must_within "$LIMIT" ended "$1" 3
	works() { dfsctl "$cut" lock -w 0 /d/f true; }
	must_within "$LIMIT" works
fi

# raftd is gone, and so is the lock.
holder 1 /d/f
must_within "$LIMIT" holds 1
ctl kill -r 1 || fail "kill raftd"
must_within "$LIMIT" ended 1 $EX_SOFTWARE
must_within "$LIMIT" is_there "$CLUSTER/term.1"
ctl start 1 && ctl wait 1 || fail "start"
exits 0 2 lock -w 30 /d/f true
# shellcheck disable=SC2086
wait $JOBS

# Local locks are seen by nobody else.
[ "$(uname -s)" = Linux ] || exit 0
for n in 1 2; do
	ctl stop "$n" || fail "stop"
	conf=$(ctl conf "$n")
	awk '{ print } /^mount .*{/ { print "\tlocal lock yes" }' "$conf" \
	    >"$CLUSTER/conf" && cat "$CLUSTER/conf" >"$conf" || fail "conf"
	grep -q "local lock yes" "$conf" || fail "$(cat "$conf")"
	ctl start "$n" && ctl wait "$n" || fail "start"
done
python3 -B -c '
import fcntl, sys
first, second = sys.argv[1:]
files = [open(path, "r+") for path in (first, second, first)]
fcntl.flock(files[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
fcntl.flock(files[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
fcntl.lockf(files[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
try:
    fcntl.flock(files[2], fcntl.LOCK_EX | fcntl.LOCK_NB)
    sys.exit("not excluded on the same node")
except BlockingIOError:
    pass
' "$(mnt 1)/d/f" "$(mnt 2)/d/f" || fail "local locks"
none 1 || fail "local locks are shown"
