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

# mounthelper.sh: mount_dfs as the helper of mount(8).  mount(8) itself runs in
# a mount namespace with a directory of helpers of its own, and dfsd mounts
# outside of it, where everybody sees it.

LC_ALL=C
export LC_ALL
. "$(dirname "$0")/../lib.sh"
cluster_up 1 -o "nosuid no"
# mount(8) takes a spec for a file if there is one of that name.
cd "$CLUSTER" || exit 1
S=$(ctl sock 1)
M=$(mnt 1)
A=$CLUSTER/n1/by-hand
mkdir "$A" || exit 1
# As in the examples of mount_dfs(8), but for the names.
printf 'mount "%s" {\n\tsubtree "/www"\n\tnoexec yes\n\tauto no\n}\n' "$A" \
    >>"$(ctl conf 1)"
[ "$(dfsctl 1 reload)" = ok ] || fail "reload"
mkdir "$M/www" && echo below >"$M/www/f" || fail "write"

# helper OPTIONS SPEC DIRECTORY: as the mount(8) of BSD runs it; each option
# has an -o of its own.
helper() {
	helper_args=
	for helper_o in $(echo "$1" | tr , ' '); do
		helper_args="$helper_args -o $helper_o"
	done
	# shellcheck disable=SC2086
	"$BIN/mount_dfs" $helper_args -o "socket=$S" "$2" "$3"
}
# says TEXT COMMAND ...: it fails and says so.
says() {
	text=$1
	shift
	"$@" >"$CLUSTER/out" 2>&1 && fail "succeeds: $*"
	grep -qF -- "$text" "$CLUSTER/out" ||
	    fail "$* says: $(cat "$CLUSTER/out")"
}
mounts_at() { mount | grep -c " on $1 "; }
once() { [ "$(mounts_at "$1")" -eq 1 ] || fail "$1: mounted $(mounts_at "$1") times"; }
never() { [ "$(mounts_at "$1")" -eq 0 ] || fail "$1: mounted"; }
serving() { dfsctl 1 show mounts | grep -q "^$1 .* serving$"; }
detached() { dfsctl 1 show mounts | grep -q "^$1 .* detached$"; }
fused_count() { ctl pids 1 | awk '$1 == "fused" { n++ } END { print n + 0 }'; }

# umount(8) ends the fused, in order, and the log has no error.
unmounts() {
	unmount_line=$(awk 'END { print NR }' "$(ctl log 1)")
	must_within "$LIMIT" umount "$1"
	must_within "$LIMIT" detached "$1"
	one_fused() { [ "$(fused_count)" -eq 1 ]; }
	must_within "$LIMIT" one_fused
	awk -v n="$unmount_line" 'NR > n' "$(ctl log 1)" >"$CLUSTER/out"
	grep -q "mount $1: detached" "$CLUSTER/out" || fail "not in the log"
	grep -qE "lost child|fatal|unmount:" "$CLUSTER/out" &&
	    fail "umount: $(cat "$CLUSTER/out")"
	never "$1"
}

# --- the arguments of BSD
never "$A"
for spec in demo demo:/www; do
	helper rw,noauto $spec "$A" || fail "mount_dfs $spec"
	[ "$(cat "$A/f")" = below ] || fail "$spec: not what it says"
	helper rw $spec "$A" >"$CLUSTER/out" 2>&1 ||
	    fail "not there twice: $(cat "$CLUSTER/out")"
	[ ! -s "$CLUSTER/out" ] || fail "says: $(cat "$CLUSTER/out")"
	once "$A"
	unmounts "$A"
done
[ "$("$BIN/mount_dfs" -v -s "$S" demo:/ "$M")" = "$M: already mounted" ] ||
    fail "-v says nothing"
once "$M"

# --- what does not agree
says "prod: the cluster of this node is \"demo\"" helper rw prod "$A"
says "demo:/: $A has subtree \"/www\" in dfsd.conf" helper rw demo:/ "$A"
says "$CLUSTER: not in dfsd.conf; add: mount \"$CLUSTER\" { }" \
    helper rw demo "$CLUSTER"
says "$A: not read only in dfsd.conf; add: read only yes" helper ro demo "$A"
never "$A"
# That it is mounted makes no difference.
for option in ro:"read only" nosuid:nosuid noexec:noexec noatime:noatime; do
	says "$M: not ${option#*:} in dfsd.conf; add: ${option#*:} yes" \
	    helper "rw,${option%%:*}" demo "$M"
done
helper rw,exec,suid,dev demo:/ "$M" || fail "wider is no error"
# fstab_example N: the options in the Nth example of mount_dfs(8).
fstab_example() {
	awk -v n="$1" '/^prod:.* dfs / && ++i == n { print $4 }' \
	    "$TOP/man/mount_dfs.8"
}
[ -n "$(fstab_example 2)" ] && [ -z "$(fstab_example 3)" ] ||
    fail "no examples in mount_dfs.8"
helper "$(fstab_example 2)" demo:/www "$A" || fail "the example for OpenBSD"
once "$A"
unmounts "$A"
says "frob: unknown option" helper rw,frob demo "$A"
says "update: change dfsd.conf and use: dfsctl reload" helper update demo "$A"
says "usage: mount_dfs" "$BIN/mount_dfs" -u demo "$A"

# --- the mount(8) of Linux
if [ "$(uname -s)" = Linux ] && command -v unshare >/dev/null &&
    unshare -m true 2>/dev/null; then
	mkdir "$CLUSTER/helpers" &&
	    cp -P "$(command -v mount)" "$CLUSTER/helpers/mount" &&
	    ln -s "$BIN/mount_dfs" "$CLUSTER/helpers/mount.dfs" || exit 1
	# Its own table may differ from that outside; dfsd's is what counts.
	linux() {
		unshare -m --propagation slave sh -c '
			helpers=$1
			shift
			mount --bind "$helpers" "$(cd /sbin && pwd -P)" &&
			    exec "$helpers/mount" "$@"' sh "$CLUSTER/helpers" "$@"
	}
	# linux_fstab OPTIONS DIRECTORY SPEC: then mount(8) with fstab(5).
	linux_fstab() {
		echo "$3 $2 dfs $1,socket=$S 0 0" >"$CLUSTER/fstab"
		fstab_dir=$2
		shift 3
		linux -T "$CLUSTER/fstab" "${@:-$fstab_dir}"
	}
	linux -t dfs -o "socket=$S" demo "$A" || fail "mount -t dfs"
	once "$A"
	[ "$(cat "$A/f")" = below ] || fail "mount -t dfs: not what it says"
	linux -t dfs -o "socket=$S" demo:/www "$A" || fail "mount -t dfs: again"
	linux -v -t dfs -o "socket=$S" demo:/www "$A" >"$CLUSTER/out" ||
	    fail "mount -v"
	grep -qx "$A: already mounted" "$CLUSTER/out" ||
	    fail "mount -v says: $(cat "$CLUSTER/out")"
	once "$A"
	unmounts "$A"

	linux_fstab "$(fstab_example 1)" "$A" demo:/www ||
	    fail "mount: the example for Linux"
	once "$A"
	unmounts "$A"
	linux_fstab rw,nodev "$A" demo:/www -a || fail "mount -a"
	linux_fstab rw,nodev "$A" demo:/www -a || fail "mount -a: again"
	once "$A"
	unmounts "$A"
	linux_fstab rw,noauto "$A" demo:/www -a || fail "mount -a with noauto"
	never "$A"
	says "mount.dfs: $M: not noexec in dfsd.conf; add: noexec yes" \
	    linux -t dfs -o "noexec,socket=$S" demo:/ "$M"
	says "mount.dfs: frob: unknown option" linux_fstab rw,frob "$A" demo:/www
	linux_fstab rw,frob "$A" demo:/www -s "$A" || fail "mount -s"
	unmounts "$A"
	linux -f -t dfs -o "socket=$S" demo:/www "$A" || fail "mount -f"
	never "$A"
	says "mount.dfs: $A: not read only in dfsd.conf; add: read only yes" \
	    linux -r -t dfs -o "socket=$S" demo:/www "$A"
	says "remount: change dfsd.conf and use: dfsctl reload" \
	    linux -t dfs -o "remount,socket=$S" demo:/www "$A"
	never "$A"
else
	echo "mounthelper: no mount namespaces: mount(8) itself is not tried"
fi

# --- before dfsd, as at boot: it is waited for.
ctl stop 1 || fail "stop"
says "connect: $S: No such file or directory" helper rw demo "$A"
helper rw demo:/www "$A" >"$CLUSTER/helper.out" 2>&1 &
helper_pid=$!
ctl start 1 || fail "start"
wait $helper_pid || fail "did not wait: $(cat "$CLUSTER/helper.out")"
once "$A"
must_within "$LIMIT" serving "$A"
[ "$(cat "$A/f")" = below ] || fail "not what it says"
umount "$A" || fail "umount"
