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

# startup.sh: what keeps dfsd from starting: each is a clear line and an exit
# status of 1, and leaves nothing behind.

LC_ALL=C
export LC_ALL
. "$(dirname "$0")/../lib.sh"
cluster_up 1
N1=$CLUSTER/n1
T=$CLUSTER/t
mkdir "$T" "$T/mnt" || exit 1

detach() {
	umount -l "$T/mnt" 2>/dev/null || umount -f "$T/mnt" 2>/dev/null
}
leave() {
	leave_rc=$?
	detach
	(exit $leave_rc)
	cluster_down
}
trap leave EXIT

# conf [SED SCRIPT]: a config like that of node 1, with directories, socket and
# port of its own.
conf() {
	rm -f "$T/conf"
	sed -e "s|$N1/db|$T/db|; s|$N1/dfsd.sock|$T/sock|; s|$N1/mnt|$T/mnt|" \
	    -e "s|port $port\$|port 7499|; s|port $port {|port 7499 {|" \
	    "$N1/conf" | sed -e "${1:-}" >"$T/conf"
	chmod 600 "$T/conf"
}
port=$(sed -n 's/^listen on .* port //p' "$N1/conf")

start() { ctl exec 1 env DFSD_LIBEXEC="$BIN" "$BIN/dfsd" -d -f "$T/conf"; }

# refuses WHY TEXT [COMMAND ...]
refuses() {
	why=$1
	text=$2
	shift 2
	[ $# -gt 0 ] || set -- start
	rm -f "$T/out"
	"$@" >"$T/out" 2>&1 </dev/null &
	refuses_pid=$!
	refuses_ended() { ! kill -0 $refuses_pid 2>/dev/null; }
	if ! wait_until 20 refuses_ended; then
		kill_new
		cat "$T/out" >&2
		fail "$why: goes on"
	fi
	wait $refuses_pid
	refuses_rc=$?
	grep -qF -- "$text" "$T/out" || {
		cat "$T/out" >&2
		fail "$why: does not say: $text"
	}
	[ $refuses_rc -eq 1 ] || fail "$why: exit status $refuses_rc"
	grep -qi panicked "$T/out" && fail "$why: panic"
	# When it was raftd that refused the mount is there already, and dead.
	if mount | grep -q " on $T/mnt "; then
		ls "$T/mnt/." 2>/dev/null && fail "$why: the mount serves"
		detach || fail "$why: umount"
	fi
	[ $running = no ] || dfsctl 1 status >/dev/null ||
	    fail "$why: node 1: $(dfsctl 1 status)"
}
# Whether node 1 runs, which nothing here may disturb.
running=yes
# Only what was started here: the child of this shell and its children.
kill_new() {
	for pid in $(ps -axo pid=,ppid= | awk -v p="$refuses_pid" '
	    $1 == p || $2 == p { print $1 }'); do
		kill -KILL "$pid"
	done
	detach
}
fresh_db() {
	rm -rf "$T/db"
	mkdir -m 700 "$T/db" && chown _dfsd:_dfsd "$T/db" || exit 1
}

# Sockets.
conf "s|$T/sock|$N1/dfsd.sock|"
refuses "control socket in use" "$N1/dfsd.sock: already running"
conf "s|port 7499|port $port|"
# A node opens its port when it has been up for a moment.
listens() {
	ctl exec 1 python3 -c 'import socket, sys
socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)' \
	    "$(ctl addr 1)" "$port"
}
must_within "$LIMIT" listens
refuses "port in use" ":$port: Address already in use"
echo precious >"$T/sock"
conf
refuses "socket that is none" "$T/sock: not a socket"
[ "$(cat "$T/sock")" = precious ] || fail "a file was taken for a socket"
rm "$T/sock"

# Mount points.
rmdir "$T/mnt"
refuses "no mount point" "mount $T/mnt: No such file or directory"
: >"$T/mnt"
refuses "mount point is a file" "mount $T/mnt: not a directory"
rm "$T/mnt"
mkdir "$T/mnt"
# One that is there anyway: /proc, or what mount(8) shows first of those that
# do not contain this test.
at=/proc
[ "$(uname -s)" = Linux ] || at=$(mount | awk -v t="$T/" '
	$3 != "/" && index(t, $3 "/") != 1 { print $3; exit }')
if [ -n "$at" ]; then
	conf "s|$T/mnt|$at|"
	refuses "mount point of another file system" \
	    "mount $at: already mounted"
fi
conf
echo "mount \"$T/mnt\" { read only yes }" >>"$T/conf"
refuses "mount point twice" "$T/conf:"

# Data directories.
conf
rm -rf "$T/db"
: >"$T/db"
refuses "data is a file" "$T/db: not a directory"
rm "$T/db"
fresh_db
chmod 755 "$T/db"
refuses "wrong mode" "$T/db: mode 0755, not 0700"
fresh_db
chown root "$T/db"
refuses "wrong owner" "$T/db: not owned by _dfsd"
fresh_db
echo precious >"$T/db/file"
refuses "not empty and not ours" "not empty and not a dfsd data directory"
[ "$(ls "$T/db")" = file ] || fail "something was put into a foreign directory"
conf "s|$T/db|$N1/db|"
refuses "data directory in use" "in use by another raftd"
conf "s|data \"$T/db\"|data \"$T/no/such/db\"|"
refuses "no directory to make it in" "$T/no/such/db: No such file or directory"

# Those of others: node 1 has stopped, its directory remains.
ctl stop 1 || fail "stop"
cp -Rp "$N1/db" "$T/db.good" || exit 1
running=no
other() { rm -rf "$T/db"; cp -Rp "$T/db.good" "$T/db"; }
other
conf 's/^node 1$/node 2/
s/^	id 1$/	id 2/'
refuses "data of another node" "belongs to node 1"
other
conf 's/^cluster .*/cluster "other"/'
refuses "data of another cluster" 'belongs to cluster "demo"'
other
conf
sed 's/^format .*/format 999/' "$T/db.good/identity" >"$T/db/identity"
refuses "another format" "format 999, need format"
echo rubbish >"$T/db/identity"
refuses "damaged identity" "identity: damaged"

# Who and what.
other
nobody_starts() {
	mkdir -p "$T/bin"
	cp "$BIN/dfsd" "$T/bin/"
	conf
	chown 65534 "$T/conf"
	setpriv --reuid=65534 --regid=65534 --clear-groups \
	    "$T/bin/dfsd" -d -f "$T/conf"
}
if command -v setpriv >/dev/null; then
	refuses "not root" "need root privileges" nobody_starts
fi
if command -v unshare >/dev/null; then
	grep -v '^_dfsd:' /etc/passwd >"$T/passwd"
	nameless() {
		ctl exec 1 unshare -m sh -c \
		    'mount --bind "$1" /etc/passwd && exec "$2" -d -f "$3"' \
		    sh "$T/passwd" "$BIN/dfsd" "$T/conf"
	}
	conf
	refuses "no user" "unknown user _dfsd" nameless
fi
DFSD_NONE=$T/none
mkdir "$DFSD_NONE"
without() { ctl exec 1 env DFSD_LIBEXEC="$DFSD_NONE" "$BIN/dfsd" -d -f "$T/conf"; }
conf
refuses "no raftd" "$DFSD_NONE/raftd" without

# And with nothing wrong it starts, in the directory that was there.
ctl start 1 && ctl wait 1 || fail "node 1 does not start any more"
