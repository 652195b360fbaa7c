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

# subtree.sh: a mount of a directory that is not there yet, is renamed,
# replaced and removed; and what dfsctl takes a path in it for.

LC_ALL=C
export LC_ALL
. "$(dirname "$0")/../lib.sh"
cluster_up 3
X=$CLUSTER/n1/x
mkdir "$X" || exit 1
printf 'mount "%s" {\n\tsubtree "/web"\n}\n' "$X" >>"$(ctl conf 1)"
[ "$(dfsctl 1 reload)" = ok ] || fail "reload"
serving() { dfsctl 1 show mounts | grep -q "^$X .* serving$"; }
must_within "$LIMIT" serving
M=$(mnt 1) N=$(mnt 2)

# refused COMMAND ...: it is not there.
refused() {
	"$@" >"$CLUSTER/out" 2>&1 && fail "$*: done"
	grep -q "No such file or directory" "$CLUSTER/out" ||
	    fail "$*: $(cat "$CLUSTER/out")"
}
# reads FILE TEXT
reads() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }
absent() {
	refused ls "$X"
	refused cat "$X/l"
	refused mkdir "$X/d"
	dfsctl 1 quota -b 8K "$X" 2>"$CLUSTER/out" && fail "a quota of nothing"
	grep -q "quota -b 8K $X: not found" "$CLUSTER/out" ||
	    fail "$(cat "$CLUSTER/out")"
	is_there "$X/." && fail "a directory that is not there"
	dfsctl 1 lock "$X/l" true 2>/dev/null && fail "a lock of nothing"
	serving || fail "not serving"
}

absent
mkdir "$N/web" && echo old >"$N/web/l" || fail "write"
must_within "$LIMIT" reads "$X/l" old
echo other >"$X/other" || fail "write"
cmp "$X/other" "$N/web/other" || fail "not the same directory"

# As other mounts do it stays with the directory that is renamed.
ln -s web.old "$M/link" || fail "ln"
mv "$N/web" "$N/web.old" && mkdir "$N/web" && echo new >"$N/web/l" ||
    fail "replace"
must_within "$LIMIT" reads "$M/web/l" new
reads "$X/l" old || fail "moved to another directory: $(cat "$X/l")"
if [ "$(uname -s)" = Linux ]; then
	for path in "$X/l" "$M/web.old/l" /web.old/l "$M/link/l" "$X/../mnt/web.old/l"; do
		for file in "$X/l" "$N/web.old/l"; do
			dfsctl 1 lock -w 0 "$path" python3 -B -c '
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(3)' "$file"
			[ $? -eq 3 ] || fail "lock $path: does not exclude $file"
		done
	done
fi
[ "$(dfsctl 1 quota -b 1M "$X")" = ok ] || fail "quota"
dfsctl 1 quota | grep -q '^/web.old ' || fail "quota: $(dfsctl 1 quota)"
[ "$(dfsctl 1 quota -d "$X")" = ok ] || fail "quota -d"

# When that is removed, what has the name by then is shown.
cd "$X" || fail "cd"
rm "$N/web.old/l" "$N/web.old/other" && rmdir "$N/web.old" || fail "remove"
must_within "$LIMIT" reads "$X/l" new
cd - >/dev/null || exit 1
for node in 2 1; do
	rm "$(mnt $node)/web/l" && rmdir "$(mnt $node)/web" || fail "remove"
	must_within "$LIMIT" is_gone "$X/l"
	absent
	mkdir "$N/web" && echo "again $node" >"$N/web/l" || fail "write"
	must_within "$LIMIT" reads "$X/l" "again $node"
	echo more >"$X/more.$node" && rm "$X/more.$node" || fail "write"
done
grep -il panicked "$CLUSTER"/n*/log && fail "a panic in the log"
must_trees_equal .
