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

# mountctl.sh: mount_dfs, reload, and what dfsctl shows and does.

LC_ALL=C
export LC_ALL
. "$(dirname "$0")/../lib.sh"
cluster_up 3
S=$(ctl sock 1)
M=$(mnt 1)
# Where somebody who is not root finds them.
mkdir "$CLUSTER/bin" && cp "$BIN/dfsctl" "$BIN/mount_dfs" "$CLUSTER/bin" ||
    exit 1

mount_dfs() { "$BIN/mount_dfs" -s "$S" "$@"; }
# says TEXT COMMAND ...: it fails with exit status 1, and so.
says() {
	text=$1
	shift
	"$@" >"$CLUSTER/out" 2>&1
	says_rc=$?
	[ $says_rc -eq 1 ] || fail "exit status $says_rc: $*"
	grep -qF -- "$text" "$CLUSTER/out" ||
	    fail "$* says: $(cat "$CLUSTER/out")"
}
mounted() { mount | grep -q " on $1 "; }
not_mounted() { ! mounted "$1"; }
fused_of() { ctl pids 1 | awk '$1 == "fused" { print $2 }'; }

# --- mount_dfs
echo data >"$M/file" || fail "write"
says "mount_dfs: $M: already mounted" mount_dfs "$M"
mount_dfs -u "$M" || fail "mount_dfs -u"
not_mounted "$M" || fail "still mounted"
[ -z "$(ls -A "$M")" ] || fail "not the bare directory"
[ -z "$(fused_of)" ] || fail "a fused remains"
dfsctl 1 show mounts | grep -q "^$M .* detached$" || fail "show mounts"
dfsctl 1 status >/dev/null || fail "status without a mount"
says "mount_dfs: $M: not mounted" mount_dfs -u "$M"
mount_dfs "$M" || fail "mount_dfs"
[ "$(cat "$M/file")" = data ] || fail "not there again"
(cd "$CLUSTER/n1" && mount_dfs -u ./mnt/ && mount_dfs mnt) ||
    fail "a name relative to the directory"
# Detached while in use: it goes at once, and the fused ends.
exec 5<"$M/file"
mount_dfs -u "$M" || fail "mount_dfs -u while in use"
not_mounted "$M" || fail "still mounted"
exec 5<&-
mount_dfs "$M" || fail "mount_dfs"
X=$CLUSTER/n1/x
mkdir "$X" || exit 1
says "mount_dfs: $X: not in dfsd.conf; add: mount \"$X\" { }" mount_dfs "$X"
says "not in dfsd.conf" mount_dfs -u /
says "usage: mount_dfs" mount_dfs
says "mount_dfs: connect: $CLUSTER/none: No such file or directory" \
    "$BIN/mount_dfs" -s "$CLUSTER/none" "$M"

# --- who may
if command -v setpriv >/dev/null; then
	as() { setpriv --reuid=65534 --regid="$1" --clear-groups "$CLUSTER/bin/$2" -s "$S" "$3" $4; }
	says "Permission denied" as 65534 dfsctl status
	as 0 dfsctl status >/dev/null || fail "status for group wheel"
	as 0 dfsctl show log >/dev/null || fail "show log for group wheel"
	for what in stop reload "log verbose"; do
		# shellcheck disable=SC2086
		says "dfsctl: $what: need root privileges" as 0 dfsctl $what
	done
	says "need root privileges" as 0 mount_dfs -u "$M"
	mounted "$M" || fail "detached by nobody"
	dfsctl 1 status >/dev/null || fail "stopped by nobody"
fi

# --- reload
mkdir "$M/sub" && echo below >"$M/sub/f" || fail "write"
printf 'mount "%s" {\n\tsubtree "/sub"\n\tread only yes\n}\n' "$X" \
    >>"$(ctl conf 1)"
old=$(fused_of)
[ "$(dfsctl 1 reload)" = ok ] || fail "reload"
serving() { dfsctl 1 show mounts | grep -q "^$1 .* serving$"; }
must_within "$LIMIT" serving "$X"
[ "$(cat "$X/f")" = below ] || fail "subtree"
(: >"$X/g") 2>"$CLUSTER/out" && fail "written to a read-only mount"
grep -qi "read-only file system" "$CLUSTER/out" || fail "$(cat "$CLUSTER/out")"
dfsctl 1 show mounts | grep -q "^$X  */sub  *ro  *[0-9]  *serving$" ||
    fail "$(dfsctl 1 show mounts)"
# What goes on in the tree is seen through both.
echo changed >"$M/sub/f" || fail "write"
[ "$(cat "$X/f")" = changed ] || fail "second mount: old data"
case " $(fused_of | tr '\n' ' ')" in
*" $old "*) ;;
*) fail "reload restarted the mount that did not change" ;;
esac
# With an error the old configuration stays.
cp "$(ctl conf 1)" "$CLUSTER/conf.good"
echo 'nonsense' >>"$(ctl conf 1)"
says "dfsctl: reload: configuration not changed: see the log" dfsctl 1 reload
grep -q "conf:[0-9]*: " "$(ctl log 1)" || fail "no line of the error in the log"
sed 's/^cluster .*/cluster "other"/' "$CLUSTER/conf.good" >"$(ctl conf 1)"
says "configuration not changed" dfsctl 1 reload
grep -q 'reload: cluster cannot change: restart dfsd' "$(ctl log 1)" ||
    fail "no reason in the log"
serving "$X" && [ "$(cat "$X/f")" = changed ] || fail "mount lost by a reload"
# SIGHUP does the same; a mount that is gone is detached.
grep -n "^mount \"$X\"" "$CLUSTER/conf.good" >/dev/null || exit 1
awk -v x="mount \"$X\" {" '$0 == x { skip = 4 } skip-- > 0 { next } { print }' \
    "$CLUSTER/conf.good" >"$(ctl conf 1)"
kill -HUP "$(ctl pids 1 | awk '$1 == "parent" { print $2 }')"
must_within "$LIMIT" not_mounted "$X"
must_within "$LIMIT" serving "$M"

# --- umount(8) does it as well, and mount_dfs brings it back.
umount "$M" || fail "umount"
detached() { dfsctl 1 show mounts | grep -q "^$M .* detached$"; }
must_within "$LIMIT" detached
mount_dfs "$M" || fail "mount_dfs after umount"

# --- show
table() { dfsctl 1 "$@" >"$CLUSTER/out" || fail "$*: exit status $?"; }
row() { grep -qE -- "$1" "$CLUSTER/out" || fail "no $1 in: $(cat "$CLUSTER/out")"; }
table status
row '^node 1, (leader|follower of [123]), term [0-9]+, applied [0-9]+$'
row '^  Node Address               Role         Match    Lag  Up/Down  State$'
for n in 1 2 3; do
	# The port is shown where it is not 7400.
	row "^[ *]    $n $(ctl addr "$n")(:[0-9]+)? +(leader|follower) +[0-9]+ +[0-9]+ [0-9:]+  "
done
row "^[ *]    1 .*this node\$"
row "^[ *]    2 .*  up\$"
[ "$(grep -c '^\*' "$CLUSTER/out")" -eq 1 ] || fail "not one leader"
row '^Mount                Subtree          Mode  Open  State$'
row "^$M +/ +rw +[0-9]+  serving\$"
table show peers
[ "$(wc -l <"$CLUSTER/out")" -eq 4 ] || fail "show peers: not four lines"
table show summary
row '^node 1, '
table show log
[ "$(wc -l <"$CLUSTER/out")" -eq 4 ] || fail "show log: not four lines"
row '^ +First +Last +Flushed +Committed +Applied +Checkpoint +Floor$'
row '^ +Segments +Spare +Bytes +Limit +Groups +Flushes +Written$'
for what in status "show peers" "show mounts" "show log"; do
	# shellcheck disable=SC2086
	dfsctl 1 -j $what | python3 -c 'import json, sys; json.load(sys.stdin)' ||
	    fail "-j $what: not JSON"
done
dfsctl 1 -j show log | python3 -c '
import json, sys
l = json.load(sys.stdin)
assert l["first"] <= l["checkpoint"] + 1 and l["applied"] <= l["committed"] <= l["last"], l
assert l["flushed"] >= l["applied"] and l["segments"] >= 1 and l["bytes"] <= l["limit"], l
assert l["groups"] > 0 and l["flushes"] > 0 and l["written"] > 0, l' ||
    fail "show log does not add up"
says "unknown argument: frob" dfsctl 1 frob
# Open files are counted.
exec 5<"$M/file"
dfsctl 1 show mounts | grep -qE "^$M +/ +rw +1  serving\$" ||
    fail "an open file is not counted: $(dfsctl 1 show mounts)"
exec 5<&-

# --- log
[ "$(dfsctl 1 log brief)" = ok ] || fail "log brief"
[ "$(dfsctl 1 log verbose)" = ok ] || fail "log verbose"

# --- stop: clean, and the others go on.
must_trees_equal .
echo last >"$M/last" || fail "write"
[ "$(dfsctl 1 stop)" = ok ] || fail "stop"
node_gone() { [ -z "$(ctl pids 1)" ]; }
must_within 25 node_gone
not_mounted "$M" || fail "still mounted after stop"
[ ! -e "$S" ] || fail "the control socket remains"
tail -n 3 "$(ctl log 1)" | grep -qE '(^|: )terminating$' ||
    fail "no terminating in the log"
says "dfsctl: connect: $S: No such file or directory" dfsctl 1 status
must_within "$LIMIT" is_there "$(mnt 2)/last"
put "$CLUSTER/out" "$(mnt 2)/without" || fail "write without node 1"
ctl start 1 && ctl wait 1 || fail "start after stop"
must_trees_equal .
