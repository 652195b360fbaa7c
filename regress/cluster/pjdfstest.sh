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

# pjdfstest.sh: the suite of that name, as root, on the leader and a follower.
# Each case passes, or stands in pjdfstest.except with its reason; one that
# stands there and does anything else is a failure too.

. "$(dirname "$0")/../lib.sh"
SUITE=$TOP/target/tools/bin/pjdfstest
HERE=$TOP/regress/cluster
[ "$(uname -s)" = Linux ] || skip "the suite is for Linux"
[ -x "$SUITE" ] || fail "no pjdfstest: sh regress/setup"
cluster_up 3 -o 'nosuid no' -o 'nodev no'

# The suite mounts again, read only, by mount(8), which must not look for a
# helper: fuse's takes the source of the mount for a program.
mkdir "$CLUSTER/bin" || exit 1
cat >"$CLUSTER/bin/mount" <<EOF
#!/bin/sh
exec $(command -v mount) -i "\$@"
EOF
chmod 755 "$CLUSTER/bin/mount"
awk '{ print } $0 == "[settings]" { print "allow_remount = true" }' \
    "$HERE/pjdfstest.conf" >"$CLUSTER/remount.conf"

# suite NODE OUT CONF [PATTERN]
suite() {
	suite_mnt=$(mnt "$1")
	suite_out=$2
	suite_conf=$3
	shift 3
	PATH=$CLUSTER/bin:$PATH NO_COLOR=1 "$SUITE" -c "$suite_conf" \
	    -p "$suite_mnt" -s "$CLUSTER" -- "$@" >"$suite_out" 2>&1
	# What it exits with is in its last lines too.
	grep -q '^Summary: .* total$' "$suite_out"
}

# Those that mount again go by themselves: some of the others leave a file
# open, or a process running, and the mount busy.
both() {
	suite "$1" "$CLUSTER/most.$1" "$HERE/pjdfstest.conf" &&
	    suite "$1" "$CLUSTER/erofs.$1" "$CLUSTER/remount.conf" erofs
}

# results NODE: the name and result of each case.
results() {
	{
		grep -v '::erofs_' "$CLUSTER/most.$1"
		cat "$CLUSTER/erofs.$1"
	} | awk 'NF == 2 && $1 ~ /::/ && $2 ~ /^(ok|FAILED|skipped)$/'
}

# judge NODE: every difference between its results and what is expected.
judge() {
	results "$1" | awk '
		NR == FNR {
			if (NF && $1 !~ /^#/)
				want[$2] = $1
			next
		}
		{ cases++ }
		!($1 in want) && $2 != "ok" { print $2 ": " $1 }
		$1 in want {
			if (tolower($2) != want[$1])
				print $2 ", not " want[$1] ": " $1
			delete want[$1]
		}
		END {
			for (name in want)
				print "no such case: " name
			if (cases < 390)
				print "only " cases + 0 " cases"
		}' "$HERE/pjdfstest.except" - >"$CLUSTER/judged.$1"
	[ ! -s "$CLUSTER/judged.$1" ]
}

leading=$(leader)
following=$(others "$leading" | head -n 1)
both "$following" &
both "$leading" || fail "node $leading: the suite did not end"
wait $! || fail "node $following: the suite did not end"

bad=
for n in $leading $following; do
	judge "$n" && continue
	bad="$bad $n"
	echo "node $n:" >&2
	cat "$CLUSTER/judged.$n" >&2
	grep -h -A 1 ' FAILED$' "$CLUSTER/most.$n" "$CLUSTER/erofs.$n" >&2
done
[ -z "$bad" ] || fail "leader $leading, follower $following"
echo "$(results "$leading" | grep -c ' ok$') cases passed on the leader," \
    "$(results "$following" | grep -c ' ok$') on a follower"
