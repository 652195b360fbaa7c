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

# lib.sh: what the regress scripts share.  To be read with "." by any sh or
# ksh; reading it changes nothing but these variables:
#
#	TOP		the source tree
#	BIN		where the binaries are (target/release)
#	CLUSTER		the directory of the cluster that ctl drives
#	CARGO, PATH, RUST_SOURCE, PATCHED
#			set by the functions that look for a compiler
#
# A cluster script begins with
#
#	. "$(dirname "$0")/../lib.sh"
#	cluster_up 3
#
# and from then on the cluster goes away however the script ends.

find_top() {
	for top_dir in "$(dirname "$0")" "$PWD"; do
		top_dir=$(cd "$top_dir" 2>/dev/null && pwd -P) || continue
		while [ -n "$top_dir" ]; do
			if [ -f "$top_dir/regress/lib.sh" ]; then
				echo "$top_dir"
				return
			fi
			top_dir=${top_dir%/*}
		done
	done
}

TOP=${TOP:-$(find_top)}
BIN=${BIN:-${CARGO_TARGET_DIR:-$TOP/target}/release}
NAME=${0##*/}
NAME=${NAME%.sh}
LIMIT=${LIMIT:-60}
export BIN

# --- Rust -----------------------------------------------------------------

# Whether cargo $1 runs and is at least of the version in Cargo.toml.
cargo_ok() {
	cargo_have=$("$1" --version 2>/dev/null) || return 1
	cargo_need=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$TOP/Cargo.toml")
	echo "${cargo_have#cargo } $cargo_need" | awk '{
		split($1, have, "."); split($NF, need, ".")
		exit !(have[1] > need[1] ||
		    have[1] == need[1] && have[2] + 0 >= need[2] + 0)
	}'
}

# Sets CARGO, and puts its directory first in PATH: it must find the rustc,
# the rustfmt and the clippy of its own release, not those of another one.
find_cargo() {
	for cargo_try in "${CARGO:-cargo}" "$(rustup which cargo 2>/dev/null)" \
	    "${CARGO_HOME:-${HOME:-/}/.cargo}/bin/cargo" /usr/bin/cargo \
	    /usr/local/bin/cargo "$(rustup which --toolchain stable cargo \
	    2>/dev/null)"; do
		[ -n "$cargo_try" ] || continue
		cargo_ok "$cargo_try" || continue
		CARGO=$(command -v "$cargo_try")
		PATH=${CARGO%/*}:$PATH
		export CARGO PATH
		return 0
	done
	return 1
}

# Sets RUST_SOURCE, where the source of the library of cargo's rustc is, if it
# is there.
rust_source() {
	RUST_SOURCE=$(rustc --print sysroot)/lib/rustlib/src/rust/library
	[ -e "$RUST_SOURCE/std/Cargo.toml" ]
}

# The same, if need be with the system's Rust instead of the one found first.
find_rust_source() {
	rust_source && return
	CARGO=/usr/bin/cargo
	find_cargo && rust_source
}

# Goes where cargo is to run.  For OpenBSD that is a second tree, of links to
# this one, but with the crate fuser as the port patches it.
source_tree() {
	cd "$TOP" || exit 1
	[ "$(uname -s)" = OpenBSD ] || return 0
	patched_tree
	CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$TOP/target}
	export CARGO_TARGET_DIR
	cd "$PATCHED/tree" || exit 1
}

# Makes that tree, PATCHED/tree.  Its Cargo.toml and Cargo.lock are those of
# this one, but say where the patched copy is.
patched_tree() {
	PATCHED=${CARGO_TARGET_DIR:-$TOP/target}/openbsd
	mkdir -p "$PATCHED/tree" && PATCHED=$(cd "$PATCHED" && pwd -P) || exit 1
	patched_version=$(awk '$1 == "name" { fuser = $3 == "\"fuser\"" }
	    fuser && $1 == "version" { gsub("\"", "", $3); print $3 }' \
	    "$TOP/Cargo.lock")
	# As cargo's module of the ports tree has it, and so the patches.
	patched_crate=modcargo-crates/fuser-$patched_version
	patched_fuser
	rm -f "$PATCHED/tree"/*
	for patched_file in "$TOP"/*; do
		case ${patched_file##*/} in
		Cargo.*|target) ;;
		*)	ln -s "$patched_file" "$PATCHED/tree/" || exit 1 ;;
		esac
	done
	{
		cat "$TOP/Cargo.toml"
		echo "[patch.crates-io]"
		echo "fuser = { path = \"$PATCHED/$patched_crate\" }"
	} >"$PATCHED/tree/Cargo.toml"
	awk '$1 == "name" { fuser = $3 == "\"fuser\"" }
	    !fuser || $1 != "source" && $1 != "checksum"' \
	    "$TOP/Cargo.lock" >"$PATCHED/tree/Cargo.lock"
}

# The copy is made anew, but if the one of the last time is the same that one
# stays, for cargo goes by the times of files.
patched_fuser() {
	patched_new=$PATCHED/new
	patched_from=$("$CARGO" metadata --locked --format-version 1 \
	    --filter-platform x86_64-unknown-openbsd \
	    --manifest-path "$TOP/Cargo.toml" |
	    tr , '\n' | sed -n 's/^"manifest_path":"\(.*\)\/Cargo.toml"$/\1/p' |
	    grep "/fuser-$patched_version\$")
	[ -n "$patched_from" ] || fail "fuser $patched_version: not found"
	rm -rf "$patched_new"
	mkdir -p "$patched_new/modcargo-crates" &&
	    cp -Rp "$patched_from" "$patched_new/$patched_crate" || exit 1
	for patched_by in "$TOP"/etc/ports/*/dfsd/patches/patch-*_fuser-*; do
		case ${patched_by##*/} in
		"patch-$(echo "$patched_crate" | tr /. __)"_*) ;;
		*)	fail "Cargo.lock has fuser $patched_version:" \
			    "make anew, or remove, ${patched_by#"$TOP"/}" ;;
		esac
		patch -s -N -F 0 -p 0 -d "$patched_new" -i "$patched_by" >&2 ||
		    fail "${patched_by##*/}: does not apply"
	done
	# What the compiler warns of in there is not for us to mend.
	patched_lib=$patched_new/$patched_crate/src/lib.rs
	{
		echo '#![allow(warnings)]'
		cat "$patched_lib"
	} >"$patched_new/lib.rs" && mv "$patched_new/lib.rs" "$patched_lib"
	if ! diff -r "$patched_new/modcargo-crates" "$PATCHED/modcargo-crates" \
	    >/dev/null 2>&1; then
		rm -rf "$PATCHED/modcargo-crates"
		mv "$patched_new/modcargo-crates" "$PATCHED/" || exit 1
	fi
	rm -rf "$patched_new"
}

# --- results --------------------------------------------------------------

# Ends the script as failed; the logs of the nodes say why.
fail() {
	echo "FAILED: $NAME: $*" >&2
	exit 1
}

# Ends the script as skipped, which the runner counts apart.
skip() {
	echo "SKIPPED: $NAME: $*"
	exit 77
}

# Waits until a command succeeds, $1 seconds at most.
wait_until() {
	wait_end=$(($(now_ms) + $1 * 1000))
	shift
	until "$@" >/dev/null 2>&1; do
		[ "$(now_ms)" -lt "$wait_end" ] || return 1
		sleep 0.05
	done
}

# The same, or the script has failed.
must_within() {
	wait_until "$@" || fail "not within $1 s:$(shift; printf ' %s' "$@")"
}

# Milliseconds, for measuring; OpenBSD's date(1) counts no fractions.
case $(date +%3N 2>/dev/null) in
[0-9][0-9][0-9])
	now_ms() { date +%s%3N; } ;;
*)
	now_ms() { perl -MTime::HiRes=time -e 'printf "%d\n", time * 1000'; } ;;
esac

# --- the cluster ----------------------------------------------------------

ctl() { sh "$TOP/regress/cluster/ctl" -d "$CLUSTER" "$@"; }
mnt() { echo "$CLUSTER/n$1/mnt"; }
dfsctl() { dfsctl_n=$1; shift; "$BIN/dfsctl" -s "$CLUSTER/n$dfsctl_n/dfsd.sock" "$@"; }

# lockers SECONDS: the program on standard input, by nodes.py, with what
# lockers.py has.
lockers() {
	{
		echo 'exec(open(os.environ["TOP"] +' \
		    '"/regress/cluster/lockers.py").read(), globals())'
		cat
	} | TOP=$TOP python3 -B "$TOP/regress/cluster/nodes.py" "$1"
}

# cluster_up N [ctl options]: N nodes, mounted and current.
cluster_up() {
	[ "$(id -u)" -eq 0 ] || skip "needs root"
	[ -c /dev/fuse ] || [ -c /dev/fuse0 ] || skip "no FUSE device"
	NODES=$1
	shift
	NODE_LIST=$(count_to "$NODES")
	CLUSTER=$(mktemp -d "${TMPDIR:-/tmp}/dfsd-$NAME.XXXXXX") || exit 1
	chmod 755 "$CLUSTER"
	export CLUSTER
	trap cluster_down EXIT
	trap 'exit 130' HUP INT TERM
	ctl -n "$NODES" "$@" up || fail "no cluster"
}

# Runs at the end of the script.  KEEP=yes leaves a failed cluster's files.
cluster_down() {
	cluster_rc=$?
	trap '' HUP INT TERM
	trap - EXIT
	: >"$CLUSTER/w.stop"
	ctl down || [ "$cluster_rc" -ne 0 ] || cluster_rc=1
	writers_stop
	case $cluster_rc in
	0|77|130) ;;
	*)	cluster_logs >&2 ;;
	esac
	if [ "$cluster_rc" -eq 1 ] && [ "${KEEP:-no}" = yes ]; then
		echo "kept: $CLUSTER" >&2
	else
		ctl -x down
	fi
	exit "$cluster_rc"
}

# disks_up SIZE...: each node of a new cluster gets a disk of its own, of so
# many MiB, in place of its data directory.
disks_up() {
	[ "$(uname -s)" = Linux ] || skip "needs tmpfs"
	# shellcheck disable=SC2086
	ctl stop $NODE_LIST || fail "stop"
	trap disks_down EXIT
	for disk_n in $NODE_LIST; do
		rm -rf "$CLUSTER/n$disk_n/db" && mkdir "$CLUSTER/n$disk_n/db" ||
		    exit 1
		disk_how=size=${1}m,mode=700
		disk_how=$disk_how,uid=$(id -u _dfsd),gid=$(id -g _dfsd)
		mount -t tmpfs -o "$disk_how" none "$CLUSTER/n$disk_n/db" ||
		    skip "no tmpfs"
		shift
	done
	# shellcheck disable=SC2086
	ctl start $NODE_LIST || fail "start"
	# shellcheck disable=SC2086
	ctl wait $NODE_LIST || fail "not current"
}

disks_down() {
	disks_rc=$?
	ctl down
	for disk_n in $NODE_LIST; do
		umount "$CLUSTER/n$disk_n/db" 2>/dev/null
	done
	(exit $disks_rc)
	cluster_down
}

cluster_logs() {
	for log_n in $NODE_LIST; do
		echo "--- node $log_n"
		tail -n "${LOG_LINES:-25}" "$CLUSTER/n$log_n/log"
	done
}

# "1 2 3" for 3.
count_to() {
	awk -v n="$1" 'BEGIN { for (i = 1; i <= n; i++) printf "%d ", i }'
}

# The nodes but $1...
others() {
	for other_n in $NODE_LIST; do
		case " $* " in
		*" $other_n "*) ;;
		*) echo "$other_n" ;;
		esac
	done
}

# The leader, waited for.
leader() {
	wait_until "$LIMIT" ctl leader || fail "no leader"
	ctl leader
}

# Whether every node says of itself that it is current.
all_current() {
	for current_n in $NODE_LIST; do
		dfsctl "$current_n" status >/dev/null || return 1
	done
}

# Whether df(1) shows the same on all nodes: the room that all agree on.
rooms_equal() {
	[ "$(for room_n in $NODE_LIST; do
		stat -f -c '%b %f %d' "$(mnt "$room_n")"
	done | sort -u | wc -l)" -eq 1 ]
}

# Whether node $1 leads; whether another one has taken over from it.
is_leader() { [ "$(ctl leader)" = "$1" ]; }
is_not_leader() { leader_now=$(ctl leader) && [ "$leader_now" != "$1" ]; }

# --- files ----------------------------------------------------------------

# Whether a tree has (no longer) such a name.
is_there() { [ -e "$1" ] || [ -L "$1" ]; }
is_gone() { ! is_there "$1"; }

# random_file FILE KIBIBYTES
random_file() {
	dd if=/dev/urandom of="$1" bs=1024 count="$2" 2>/dev/null
}

# dd's way to fsync(2) before close(2); where it has none close(2) has to do,
# which makes the same promise.
if LC_ALL=C dd if=/dev/null of=/dev/null conv=fsync 2>&1 |
    grep -q conversion; then
	DD_FSYNC=
else
	DD_FSYNC=conv=fsync
fi

# put FROM TO: one new file, written, fsynced and closed.
put() {
	put_says=$(dd if="$1" of="$2" bs=64k $DD_FSYNC 2>&1) && return
	echo "$put_says" | head -n 1
	return 1
}

# The contents of a tree in lines that can be compared.
file_sums() {
	(
		cd "$1" || exit 1
		find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r cksum
	)
}

# The contents and the attributes of a tree.
tree_sum() {
	file_sums "$1" || return 1
	(
		cd "$1" || exit 1
		if stat -c %n . >/dev/null 2>&1; then
			set -- stat -c '%A %h %u %g %Y %N'
		else
			set -- stat -f '%Sp %l %u %g %m %N %Y'
		fi
		find . -print0 | LC_ALL=C sort -z | xargs -0 "$@"
	)
}

# Whether the trees of all nodes are equal, below the directory $1.
trees_equal() {
	for tree_n in $NODE_LIST; do
		tree_sum "$(mnt "$tree_n")/${1:-.}" >"$CLUSTER/tree.$tree_n" ||
		    return 1
	done
	for tree_n in $NODE_LIST; do
		cmp -s "$CLUSTER/tree.1" "$CLUSTER/tree.$tree_n" || return 1
	done
}

# The same, or the script has failed and shows how they differ.
must_trees_equal() {
	wait_until "$LIMIT" trees_equal "${1:-.}" && return
	for tree_n in $NODE_LIST; do
		diff "$CLUSTER/tree.1" "$CLUSTER/tree.$tree_n" | head -n 20 >&2
	done
	fail "trees differ"
}

# --- writers --------------------------------------------------------------
#
# A writer makes one file after the other, each fsynced before it notes the
# name: what is noted was acknowledged.  It stops at the first error, when it
# is told to, or at 100000 files.
#
#	$CLUSTER/w.NAME.ok	milliseconds and name, one a line
#	$CLUSTER/w.NAME.err	the error
#	$CLUSTER/w.NAME.data	what is in each file

WRITERS=

# writer NAME DIRECTORY
writer() {
	random_file "$CLUSTER/w.$1.data" 1
	: >"$CLUSTER/w.$1.ok"
	rm -f "$CLUSTER/w.$1.err" "$CLUSTER/w.stop"
	writer_loop "$1" "$2" </dev/null >/dev/null 2>&1 &
	WRITERS="$WRITERS $!"
}

writer_loop() {
	trap - EXIT HUP INT TERM
	loop_i=0
	exec 4>>"$CLUSTER/w.$1.ok"
	while [ ! -e "$CLUSTER/w.stop" ] && [ $loop_i -lt 100000 ]; do
		loop_i=$((loop_i + 1))
		if loop_err=$(put "$CLUSTER/w.$1.data" "$2/$1.$loop_i"); then
			echo "$(now_ms) $1.$loop_i" >&4
		else
			echo "$1.$loop_i: $loop_err" >"$CLUSTER/w.$1.err"
			return
		fi
	done
}

writers_stop() {
	[ -n "$WRITERS" ] || return 0
	: >"$CLUSTER/w.stop"
	# shellcheck disable=SC2086
	wait $WRITERS
	WRITERS=
}

writer_count() { awk 'END { print NR }' "$CLUSTER/w.$1.ok"; }
writer_has() { [ "$(writer_count "$1")" -ge "$2" ]; }

# Waits until a writer has made $2 files more, or the script has failed.
writer_goes_on() {
	must_within "$LIMIT" writer_has "$1" $(($(writer_count "$1") + $2))
}

writer_no_error() {
	[ ! -e "$CLUSTER/w.$1.err" ] ||
	    fail "writer $1: $(head -n 3 "$CLUSTER/w.$1.err")"
}

# The longest time between two files of a writer, in milliseconds.
writer_gap() {
	awk 'NR > 1 && $1 - last > gap { gap = $1 - last } { last = $1 }
	    END { print gap + 0 }' "$CLUSTER/w.$1.ok"
}

# Whether every file that writer $1 noted is whole in the directory $2.
writer_kept() {
	kept_want=$(cksum <"$CLUSTER/w.$1.data" | awk '{ print $1 }')
	awk '{ print $2 }' "$CLUSTER/w.$1.ok" | (
		cd "$2" || exit 1
		xargs cksum
	) | awk -v want="$kept_want" -v n="$(writer_count "$1")" '
		$1 == want { whole++; next }
		bad++ < 5 { print "not whole: " $0 > "/dev/stderr" }
		END { exit whole != n }'
}
