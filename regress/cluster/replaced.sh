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

# replaced.sh: a name that two nodes replace by rename(2) as fast as they can is
# always there for whoever uses it, on every node: each open, stat, chmod and
# truncate of it succeeds, and what is read is one whole version, of each writer
# never one older than before.

. "$(dirname "$0")/../lib.sh"
cluster_up 3

python3 -B "$TOP/regress/cluster/nodes.py" 300 <<'EOF' || fail "see above"
rounds = int(os.environ.get("ROUNDS", "600"))
put(f"{A}/x", b"0 0 " + b"." * 100)
for path in at("x"):
    check(get(path))

def replace(i):
    mount = MOUNTS[i]
    for k in range(1, rounds + 1):
        # Inline and backing files in turn.
        put(f"{mount}/new.{i}", b"%d %d " % (i, k) + b"." * (100 if k % 3 else 5000))
        os.rename(f"{mount}/new.{i}", f"{mount}/x")
    put(f"{mount}/done.{i}", b"")

def use(i):
    mount = MOUNTS[i % 3]
    seen = {}
    uses = 0
    while not (there(f"{mount}/done.0") and there(f"{mount}/done.1")):
        data = get(f"{mount}/x")
        writer, k, rest = data.split(b" ", 2)
        check(len(rest) in (100, 5000) and not rest.strip(b"."), data[:20], len(data))
        check(seen.get(writer, 0) <= int(k), f"{writer} {k} after {seen}")
        seen[writer] = int(k)
        os.stat(f"{mount}/x")
        os.chmod(f"{mount}/x", 0o640 + uses % 8)
        os.utime(f"{mount}/x")
        uses += 1
    print(f"node {i % 3 + 1}: used {uses} times")

def work(i):
    replace(i) if i < 2 else use(i)
    return True

processes(6, work)
for path in at("x"):
    same(get(path), get(f"{A}/x"), path)
EOF

must_trees_equal .
