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

# flags.sh: the flags and the source of each mount as the kernel has them, what
# they do, and that they are the same after fused, or dfsd, is replaced.

LC_ALL=C
export LC_ALL
. "$(dirname "$0")/../lib.sh"
[ "$(uname -s)" = Linux ] || skip "needs the mountinfo of Linux"
command -v setpriv >/dev/null || skip "no setpriv"
cluster_up 1
M=$(mnt 1)
# As the kernel has it, without symbolic links.
P=$(cd "$CLUSTER/n1" && pwd -P) || exit 1

# All mounts, from which both dfsd.conf and what is expected are made.
# Options with "-" are not in dfsd.conf; the first mount is there already.
cat >"$CLUSTER/table" <<'EOF'
mnt	-	-	-	-	-	-
ro	-	yes	-	-	-	-
rw	-	no	-	-	-	-
nosuid	-	-	yes	-	-	-
suid	-	-	no	-	-	-
nodev	-	-	-	yes	-	-
dev	-	-	-	no	-	-
noexec	-	-	-	-	yes	-
exec	-	-	-	-	no	-
noatime	-	-	-	-	-	yes
atime	-	-	-	-	-	no
sub	/www	-	-	-	-	-
all	/www	yes	yes	yes	yes	yes
none	/www	no	no	no	no	no
some	/www	yes	no	no	-	yes
deep	/www/eu	-	no	yes	yes	-
late	/late	-	-	no	-	yes
EOF
MOUNTS=$(awk 'END { print NR }' "$CLUSTER/table")
cp "$(ctl conf 1)" "$CLUSTER/conf.ctl" || exit 1

# The options by the columns of the table, and what they are by default.
OPTIONS='BEGIN {
	split("- - read_only nosuid nodev noexec noatime", option, " ")
	for (i in option)
		sub("_", " ", option[i])
	split("- / no yes yes no no", def, " ")
	for (i in def)
		column[option[i]] = i
}
function is(i) { return $i == "-" ? def[i] : $i }'

new_conf() {
	{
		cat "$CLUSTER/conf.ctl"
		awk -v at="$P" "$OPTIONS"'
		$1 != "mnt" {
			print "mount \"" at "/" $1 "\" {"
			if ($2 != "-")
				print "\tsubtree \"" $2 "\""
			for (i = 3; i <= 7; i++)
				if ($i != "-")
					print "\t" option[i] " " $i
			print "}"
		}' "$CLUSTER/table"
	} >"$CLUSTER/conf.new" && cat "$CLUSTER/conf.new" >"$(ctl conf 1)" ||
	    fail "conf"
}
# turn NAME OPTION: the other way round.
turn() {
	awk -v name="$1" -v opt="$2" "$OPTIONS"'
	$1 == name {
		i = column[opt]
		$i = is(i) == "yes" ? "no" : "yes"
	}
	{ print }' "$CLUSTER/table" >"$CLUSTER/table.new" &&
	    mv "$CLUSTER/table.new" "$CLUSTER/table" || fail "turn"
}
reload() {
	new_conf
	[ "$(dfsctl 1 reload)" = ok ] || fail "reload"
}

# --- the tables of mounts
# Mount point, root, type, source, flags, and of the file system ro or rw, and
# who may use it.
kernel_wants() {
	awk -v at="$P" "$OPTIONS"'
	{
		mode = is(3) == "yes" ? "ro" : "rw"
		flags = mode
		for (i = 4; i <= 6; i++)
			if (is(i) == "yes")
				flags = flags "," option[i]
		flags = flags "," (is(7) == "yes" ? "noatime" : "relatime")
		print at "/" $1, "/", "fuse.dfs", "demo:" is(2), flags, mode,
		    "allow_other", "default_permissions"
	}' "$CLUSTER/table" | sort
}
# Whole lines of ours, with the numbers of mount and device.
kernel_lines() {
	awk -v below="$P/" 'index($5, below) == 1' /proc/self/mountinfo
}
kernel_has() {
	kernel_lines | awk '{
		for (i = 7; i < NF && $i != "-"; i++)
			;
		line = $5 " " $4 " " $(i + 1) " " $(i + 2) " " $6
		super = $(i + 3)
		split(super, have, ",")
		line = line " " have[1]
		n = split("allow_other default_permissions", want, " ")
		for (i = 1; i <= n; i++)
			if (index("," super ",", "," want[i] ","))
				line = line " " want[i]
		print line
	}' | sort
}
dfsctl_wants() {
	awk -v at="$P" "$OPTIONS"'
	{ print at "/" $1, is(2), is(3) == "yes" ? "ro" : "rw", "serving" }' \
	    "$CLUSTER/table" | sort
}
dfsctl_has() {
	dfsctl 1 show mounts | awk 'NR > 1 { print $1, $2, $3, $5 }' | sort
}
as_wanted() {
	for who in dfsctl kernel; do
		${who}_wants >"$CLUSTER/$who.wants"
		${who}_has >"$CLUSTER/$who.has"
		cmp -s "$CLUSTER/$who.wants" "$CLUSTER/$who.has" || return 1
	done
}
must_be_as_wanted() {
	wait_until "$LIMIT" as_wanted && return
	diff "$CLUSTER/dfsctl.wants" "$CLUSTER/dfsctl.has" >&2
	diff "$CLUSTER/kernel.wants" "$CLUSTER/kernel.has" >&2
	fail "$1: not as in dfsd.conf"
}

# --- what the flags do
# says TEXT COMMAND ...: it fails, and so.
says() {
	text=$1
	shift
	"$@" >"$CLUSTER/out" 2>&1 && fail "$*: done"
	grep -qF "$text" "$CLUSTER/out" || fail "$*: $(cat "$CLUSTER/out")"
}
nobody() {
	setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
}
# Who that is by a copy of id that is set-user-ID and set-group-ID root.
ids() { echo "$(nobody "$1" -u) $(nobody "$1" -g) $(nobody "$1" -ru)"; }
# effects NAME: of that mount, in a line.
effects() {
	at=$P/$1
	[ -e "$at/id" ] || at=$at/www
	if (echo x >"$at/new") 2>"$CLUSTER/out"; then
		does_write=written
		rm "$at/new" || fail "$1: rm"
	else
		does_write=$(sed 's/.*: //' "$CLUSTER/out")
	fi
	"$at/true" 2>"$CLUSTER/out"
	does_exec=$?$(sed 's/.*: / /' "$CLUSTER/out")
	does_id=-
	[ "$does_exec" != 0 ] || does_id=$(ids "$at/id")
	# A file would keep what is written to it.
	[ -c "$at/null" ] || fail "$1: no device"
	if (echo x >"$at/null") 2>"$CLUSTER/out"; then
		does_dev=opened$(cat "$at/null")
	else
		does_dev=$(sed 's/.*: //' "$CLUSTER/out")
	fi
	echo "$1: $does_write, $does_exec, $does_id, $does_dev"
}
effects_wanted() {
	awk "$OPTIONS"'
	$2 != "/late" {
		line = is(3) == "yes" ? "Read-only file system" : "written"
		line = line ", " \
		    (is(6) == "yes" ? "126 Permission denied, -" : "0, " \
		    (is(4) == "yes" ? "65534 65534 65534" : "0 0 65534"))
		print $1 ": " line ", " \
		    (is(5) == "yes" ? "Permission denied" : "opened")
	}' "$CLUSTER/table"
}
check_effects() {
	effects_wanted >"$CLUSTER/effects.wants"
	while IFS=: read -r name rest; do
		effects "$name" || exit 1
	done <"$CLUSTER/effects.wants" >"$CLUSTER/effects" || exit 1
	diff "$CLUSTER/effects.wants" "$CLUSTER/effects" >&2 ||
	    fail "$1: not what the flags say"
}
# Every change is refused, and nothing but changes.
read_only() {
	for dir in "$P/ro/www" "$P/all"; do
		for change in "touch $dir/f" "rm -f $dir/f" "rmdir $dir/eu" \
		    "mkdir $dir/d" "chmod 600 $dir/f" "chown 1 $dir/f" \
		    "ln $dir/f $dir/g" "ln -s f $dir/g" "mv $dir/f $dir/g" \
		    "mkfifo $dir/g" "truncate -s 0 $dir/f"; do
			# shellcheck disable=SC2086
			says "Read-only file system" $change
		done
		[ "$(cat "$dir/f")" = data ] || fail "$dir: not read"
	done
	[ "$(stat -c '%a %u %h' "$M/www/f")" = "644 0 1" ] || fail "changed"
}
# Read through one mount after the other, those first that are not to tell.
atimes() {
	awk "$OPTIONS"'
	$2 == "-" || $2 == "/www" {
		print is(3) == "yes" || is(7) == "yes" ? 0 : 1, $1
	}' "$CLUSTER/table" | sort >"$CLUSTER/readers"
	grep -q ^0 "$CLUSTER/readers" && grep -q ^1 "$CLUSTER/readers" ||
	    fail "no readers"
	while read -r tells name; do
		echo data >"$M/www/r.$name" || fail "write"
		touch -d 2001-09-09 "$M/www/r.$name" || fail "touch"
	done <"$CLUSTER/readers"
	while read -r tells name; do
		at=$P/$name
		[ -e "$at/id" ] || at=$at/www
		cat "$at/r.$name" >/dev/null || fail "$name: read"
	done <"$CLUSTER/readers"
	must_within "$LIMIT" all_told
	while read -r tells name; do
		told "$name" && moved=1 || moved=0
		[ $moved = "$tells" ] || fail "$name: the time of the access"
		rm "$M/www/r.$name" || fail "rm"
	done <"$CLUSTER/readers"
}
told() { [ "$(stat -c %X "$M/www/r.$1")" -gt 1100000000 ]; }
all_told() {
	while read -r tells name; do
		[ "$tells" = 0 ] || told "$name" || return 1
	done <"$CLUSTER/readers"
}

# --- at the first
mkdir -p "$M/www/eu" && echo data >"$M/www/f" || fail "write"
for dir in "$M/www" "$M/www/eu"; do
	cp /bin/true /usr/bin/id "$dir" &&
	    chmod 6755 "$dir/id" && mknod "$dir/null" c 1 3 || fail "write"
done
for name in $(awk '$1 != "mnt" { print $1 }' "$CLUSTER/table"); do
	mkdir "$P/$name" || exit 1
done
reload
must_be_as_wanted "reload"
check_effects "reload"
read_only
atimes

# --- each fused is another one
ctl pids 1 | grep '^fused ' | sort >"$CLUSTER/fused"
[ "$(wc -l <"$CLUSTER/fused")" -eq "$MOUNTS" ] || fail "not a fused for each"
all_other() {
	ctl pids 1 | grep '^fused ' | sort >"$CLUSTER/fused.new"
	[ "$(wc -l <"$CLUSTER/fused.new")" -eq "$MOUNTS" ] &&
	    [ -z "$(comm -12 "$CLUSTER/fused" "$CLUSTER/fused.new")" ]
}
ctl kill -f 1 || fail "kill"
must_within "$LIMIT" all_other
must_be_as_wanted "fused replaced"
check_effects "fused replaced"
read_only

# --- each option there and back, and no other mount is touched
for change in "ro:read only" suid:nosuid dev:nodev exec:noexec atime:noatime \
    "all:read only" sub:nosuid; do
	for way in there back; do
		name=${change%%:*}
		kernel_lines | grep -v " $P/$name " >"$CLUSTER/others"
		kernel_has >"$CLUSTER/before"
		turn "$name" "${change#*:}"
		reload
		must_be_as_wanted "$change $way"
		kernel_lines | grep -v " $P/$name " |
		    cmp - "$CLUSTER/others" || fail "$change: others changed"
		kernel_has | diff "$CLUSTER/before" - |
		    grep -q "^> $P/$name " || fail "$change: nothing changed"
		[ $way = there ] || continue
		effects_wanted | grep "^$name:" >"$CLUSTER/effects.wants"
		effects "$name" | diff "$CLUSTER/effects.wants" - >&2 ||
		    fail "$change: not what the flags say"
	done
done
check_effects "turned over and back"

# --- dead mounts are replaced by what dfsd.conf has by then
for name in ro rw; do
	turn $name "read only"
done
turn dev nodev
turn nosuid nosuid
turn noexec noexec
turn noatime noatime
turn atime noatime
new_conf
ctl kill 1 || fail "kill"
[ "$(kernel_lines | wc -l)" -eq "$MOUNTS" ] || fail "no dead mounts"
ctl start 1 && ctl wait 1 || fail "start"
must_be_as_wanted "dfsd replaced"
check_effects "dfsd replaced"
atimes

# --- and nothing stays
ctl stop 1 || fail "stop"
[ -z "$(kernel_lines)" ] || fail "still mounted: $(kernel_lines)"
