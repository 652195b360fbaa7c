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

# modes.sh: what the mount options strict, dirty, maxage and async close promise.

LC_ALL=C
export LC_ALL
. "$(dirname "$0")/../lib.sh"
cluster_up 3 -o "timeout 3"

# more_mounts N: node N's mounts of all kinds beside the usual one.
more_mounts() {
	for more in "strict strict yes" "dirty dirty yes" \
	    "aged dirty yes;maxage 6" "async async close yes"; do
		more_at=$CLUSTER/n$1/${more%% *}
		mkdir "$more_at" || fail "mkdir"
		{
			echo "mount \"$more_at\" {"
			echo "${more#* }" | tr ';' '\n'
			echo "timeout 3"
			echo "}"
		} >>"$(ctl conf "$1")"
	done
	[ "$(dfsctl "$1" reload)" = ok ] || fail "reload"
	must_within "$LIMIT" more_serve "$1"
}
more_serve() {
	[ "$(dfsctl "$1" show mounts | grep -c ' serving$')" -eq 5 ]
}
more_mounts 1
more_mounts 3

# --- strict: nothing is older than what any node was told to be done
python3 -B "$TOP/regress/cluster/nodes.py" 120 <<'EOF' || fail "see above"
there_, here = f"{CLUSTER}/n1/strict", f"{CLUSTER}/n3/strict"
put(f"{A}/x", b"%08d" % 0)
os.mkdir(f"{A}/d")
same(get(f"{here}/x"), b"%08d" % 0)
one = os.open(f"{A}/x", os.O_RDWR)
two = os.open(f"{there_}/x", os.O_RDWR)
fd = os.open(f"{here}/x", os.O_RDONLY)
for k in range(200):
    os.pwrite(one, b"%08d" % k, 0)
    os.fsync(one)
    same(os.pread(fd, 100, 0), b"%08d" % k, "read")
    # A write alone, of a mount that is strict itself.
    os.pwrite(two, b"+%07d" % k, 0)
    same(os.pread(fd, 100, 0), b"+%07d" % k, "read of what was written")
    os.ftruncate(two, 8 + k)
    same(os.stat(f"{here}/x").st_size, 8 + k, "size")
    os.ftruncate(two, 8)
    os.chmod(f"{A}/x", 0o600 + k % 64)
    same(os.stat(f"{here}/x").st_mode & 0o777, 0o600 + k % 64, "stat")
    same(os.fstat(fd).st_mode & 0o777, 0o600 + k % 64, "fstat")
    put(f"{A}/d/{k}", b"")
    check(str(k) in os.listdir(f"{here}/d"), "readdir")
    check(there(f"{here}/d/{k}"), "lookup")
    os.rename(f"{A}/d/{k}", f"{A}/d/{k}.new")
    check(not there(f"{here}/d/{k}"), "lookup of a name that is gone")
    os.unlink(f"{B}/d/{k}.new")
    same(os.listdir(f"{here}/d"), [], "readdir")
EOF

# --- async close: what is written is there, and elsewhere once it is synced
python3 -B "$TOP/regress/cluster/nodes.py" 60 <<'EOF' || fail "see above"
for k in range(50):
    fd = os.open(f"{CLUSTER}/n3/async/a", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    write(fd, b"%d" % k * (1 + k * 977))
    os.close(fd)
    same(get(f"{CLUSTER}/n3/async/a"), b"%d" % k * (1 + k * 977))
fd = os.open(f"{CLUSTER}/n3/async/a", os.O_WRONLY)
os.fsync(fd)
os.close(fd)
same(get(f"{A}/a"), get(f"{C}/a"))
# Or a moment later.
fd = os.open(f"{CLUSTER}/n3/async/a", os.O_WRONLY | os.O_TRUNC)
write(fd, b"later")
os.close(fd)
eventually(lambda: get(f"{A}/a") == b"later")
EOF

# --- without a quorum
# What is changed while nobody answers may be unsure after a start: not in e.
mkdir "$(mnt 1)/e" "$(mnt 1)/g" && echo kept >"$(mnt 1)/e/f" && random_file "$CLUSTER/data" 64 &&
    put "$CLUSTER/data" "$(mnt 1)/e/data" || fail "write"
at=$CLUSTER/n3
# With open and O_TRUNC done, and bytes that wait.
cat >"$CLUSTER/closes.py" <<'EOF'
import os, sys
fds = [os.open(p, os.O_WRONLY | os.O_CREAT) for p in sys.argv[1:]]
print("open", flush=True)
sys.stdin.readline()
for fd, path in zip(fds, sys.argv[1:]):
    os.write(fd, b"written alone")
    try:
        os.close(fd)
        print("closed", flush=True)
    except OSError as e:
        print(e.strerror, flush=True)
EOF
mkfifo "$CLUSTER/go" || exit 1
python3 -B "$CLUSTER/closes.py" "$at/async/b" "$at/mnt/b.plain" \
    <"$CLUSTER/go" >"$CLUSTER/closes" &
closes=$!
exec 6>"$CLUSTER/go"
is_open() { grep -q open "$CLUSTER/closes"; }
must_within "$LIMIT" is_open
same_file() { [ "$(cat "$1")" = "$2" ]; }
says() { grep -q "$1" "$(ctl log 3)"; }
must_within "$LIMIT" same_file "$at/mnt/e/f" kept
# What aged has shown, and its kernel keeps.
same_file "$at/aged/e/f" kept || fail "aged"
exec 5<"$at/aged/e/data"
ctl kill 1 2 || fail "kill"
same_file "$at/aged/e/f" kept || says "mount $at/aged: shows nothing" ||
    fail "aged: not shown though it is young"
echo go >&6
exec 6>&-
wait $closes
[ "$(tr '\n' ' ' <"$CLUSTER/closes")" = "open closed Input/output error " ] ||
    fail "close: $(cat "$CLUSTER/closes")"

same_file "$at/dirty/e/f" kept || fail "dirty: not read"
[ "$(ls "$at/dirty/e")" = "data
f" ] || fail "dirty: $(ls "$at/dirty/e")"
cmp "$CLUSTER/data" "$at/dirty/e/data" || fail "dirty: other data"
refuses() {
	"$@" >"$CLUSTER/out" 2>&1 && return 1
	grep -qiE "input/output error|read-only" "$CLUSTER/out" ||
	    fail "$(head -n 1 "$CLUSTER/out"): $*"
}
refuses sh -c "echo x >'$at/dirty/g/new'" || fail "dirty: changed alone"
refuses cat "$at/mnt/e/f" || fail "plain: opened without a quorum"
refuses cat "$at/strict/e/f" || fail "strict: opened without a quorum"
refuses stat "$at/strict/e/f" || fail "strict: stat without a quorum"
# Also what its kernel had in memory, and what was open before.
must_within "$LIMIT" refuses cat "$at/aged/e/f"
must_within "$LIMIT" refuses stat "$at/aged/e/f"
refuses cat <&5 || fail "aged: an open file is read"
exec 5<&-
same_file "$at/dirty/e/f" kept || fail "dirty: not read any more"
dfsctl 3 status >"$CLUSTER/out" && fail "status: no failure"
grep -q "^node 3.*, not current for 0" "$CLUSTER/out" ||
    fail "status: $(head -n 1 "$CLUSTER/out")"
must_within "$LIMIT" says "mount $at/dirty: shows what this node has, [0-9]* s old"
must_within "$LIMIT" says "mount $at/aged: shows nothing, [0-9]* s old"

# --- started without a quorum: nothing is known of how old it is
ctl kill 3 && ctl start 3 || fail "start"
must_within "$LIMIT" same_file "$at/dirty/e/f" kept
cmp "$CLUSTER/data" "$at/dirty/e/data" || fail "dirty: other data after a start"
refuses cat "$at/aged/e/f" || fail "aged: shown after a start"
refuses sh -c ": <>'$at/dirty/e/f'" || fail "dirty: opened to write after a start"
refuses cat "$at/mnt/e/f" || fail "plain: opened after a start"
dfsctl 3 status >"$CLUSTER/out" && fail "status: no failure"
grep -q "^node 3.*, not current since its start$" "$CLUSTER/out" ||
    fail "status: $(head -n 1 "$CLUSTER/out")"

# --- and all is well again
ctl start 1 2 && ctl wait 1 2 3 || fail "start"
for kind in mnt dirty aged strict async; do
	must_within "$LIMIT" same_file "$at/$kind/e/f" kept
done
must_trees_equal .
