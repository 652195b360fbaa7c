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

# basic.sh: what is done on one node is so on all.

. "$(dirname "$0")/../lib.sh"
cluster_up 3
A=$(mnt 1)

# on_others TEST PATH: the other nodes come to see it so.
on_others() {
	for n in 2 3; do
		must_within "$LIMIT" "$1" "$(mnt "$n")/$2"
	done
}

# same_everywhere FILE PATH: whoever opens it reads this, with no delay.
same_everywhere() {
	for n in $NODE_LIST; do
		cmp "$1" "$(mnt "$n")/$2" || fail "$2: differs on node $n"
	done
}

# Created on one node, read on all; then from the others.
for n in $NODE_LIST; do
	random_file "$CLUSTER/data.$n" "$n"
	put "$CLUSTER/data.$n" "$(mnt "$n")/from.$n" || fail "write on node $n"
done
for n in $NODE_LIST; do
	for m in $NODE_LIST; do
		must_within "$LIMIT" is_there "$(mnt "$m")/from.$n"
	done
	same_everywhere "$CLUSTER/data.$n" "from.$n"
done

# What was closed is what the next open sees, on any node.
for i in 1 2 3 4 5 6 7 8 9 10; do
	for n in $NODE_LIST; do
		echo "$i by $n" >"$CLUSTER/said"
		cat "$CLUSTER/said" >"$(mnt "$n")/from.1" ||
		    fail "rewrite on node $n"
		same_everywhere "$CLUSTER/said" from.1
	done
done

# Over a megabyte, of no even size; then longer, then shorter.
random_file "$CLUSTER/big" 5000
printf 'odd' >>"$CLUSTER/big"
cp "$CLUSTER/big" "$A/big" || fail "cp"
on_others is_there big
same_everywhere "$CLUSTER/big" big
cat "$CLUSTER/data.3" >>"$CLUSTER/big"
cat "$CLUSTER/data.3" >>"$(mnt 2)/big" || fail "append"
same_everywhere "$CLUSTER/big" big
dd if="$CLUSTER/big" of="$CLUSTER/short" bs=1000 count=1234 2>/dev/null
dd if=/dev/null of="$(mnt 3)/big" bs=1000 seek=1234 2>/dev/null ||
    fail "truncate"
same_everywhere "$CLUSTER/short" big

# A hole reads as zeros, and what stands behind it is there.
dd if="$CLUSTER/data.1" of="$CLUSTER/sparse" bs=1024 seek=4000 2>/dev/null
dd if="$CLUSTER/data.1" of="$A/sparse" bs=1024 seek=4000 2>/dev/null ||
    fail "sparse write"
on_others is_there sparse
same_everywhere "$CLUSTER/sparse" sparse

# Names: directories, links, modes.
mkdir -p "$A/d/e/f" || fail "mkdir"
put "$CLUSTER/data.2" "$A/d/e/file" || fail "write below directories"
ln "$A/d/e/file" "$A/d/hard" || fail "ln"
ln -s e/file "$A/d/soft" || fail "ln -s"
chmod 640 "$A/d/e/file" || fail "chmod"
on_others is_there d/soft
same_everywhere "$CLUSTER/data.2" d/hard
same_everywhere "$CLUSTER/data.2" d/soft
must_trees_equal .

# Rename: of a file, over another one, of a directory.
mv "$A/from.2" "$A/d/moved" || fail "mv"
on_others is_there d/moved
on_others is_gone from.2
same_everywhere "$CLUSTER/data.2" d/moved
mv "$(mnt 2)/from.3" "$(mnt 2)/d/moved" || fail "mv over a file"
for n in $NODE_LIST; do
	must_within "$LIMIT" is_gone "$(mnt "$n")/from.3"
done
same_everywhere "$CLUSTER/data.3" d/moved
mv "$A/d" "$A/g" || fail "mv of a directory"
on_others is_there g/e/f
on_others is_gone d
must_trees_equal .

# A directory with something in it stays.
rmdir "$(mnt 3)/g" 2>/dev/null && fail "rmdir of a full directory"

# Removed while open it can be read to its end.
exec 5<"$(mnt 2)/big"
rm "$A/big" || fail "rm"
on_others is_gone big
cmp "$CLUSTER/short" - <&5 || fail "removed while open: differs"
exec 5<&-

rm -r "$(mnt 2)/g" "$(mnt 2)/from.1" "$(mnt 2)/sparse" || fail "rm -r"
for n in $NODE_LIST; do
	must_within "$LIMIT" is_gone "$(mnt "$n")/sparse"
	[ -z "$(ls -A "$(mnt "$n")")" ] || fail "node $n: not empty"
done
