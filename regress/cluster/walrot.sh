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

# walrot.sh: the log on one node's disk is damaged.  What had been durable and
# has changed is named in the message log, and the node serves nothing; the
# others go on.  What a crash tore at the end of the log is cut, and the node
# catches up.

. "$(dirname "$0")/../lib.sh"
cluster_up 3

# wal.py DIRECTORY rot|heal|tear: on the newest segment, whose layout is told in
# raftd/src/store/wal.rs.  rot and heal flip a bit in a record in the middle of
# what a mark calls durable; tear writes half a record behind the last one.
cat >"$CLUSTER/wal.py" <<'EOF'
import os, re, struct, sys

where, what = sys.argv[1:]
segments = []
for name in os.listdir(where):
    if re.fullmatch(r"\d+", name):
        path = os.path.join(where, name)
        with open(path, "rb") as f:
            magic, number, salt = struct.unpack("<8sQQ", f.read(24))
        if magic == b"dfsdwal1":
            segments.append((number, salt, path))
assert segments, f"{where}: no segments"


def records(salt, data):
    """Offset, kind, body's offset and length of each record."""
    at = 4096
    while at + 40 <= len(data):
        magic, kind, its_salt, index, length = struct.unpack_from("<4sB3xQQI", data, at)
        if magic != b"dfWR" or its_salt != salt:
            up = (at + 4095) // 4096 * 4096
            if up == at:
                return
            at = up
            continue
        yield at, kind, at + 40, length
        at += (40 + length + 7) // 8 * 8


for number, salt, path in sorted(segments, reverse=True):
    with open(path, "rb") as f:
        data = f.read()
    found = list(records(salt, data))
    if found and found[0][1] == 1:
        break
else:
    sys.exit("no segment in use")
end = found[-1][2] + found[-1][3]
durable = max([struct.unpack_from("<QQ", data, body)[1] for _, kind, body, _ in found
               if kind == 2 and struct.unpack_from("<Q", data, body)[0] == number] or [0])
with open(path, "r+b") as f:
    if what == "tear":
        at = (end + 7) // 8 * 8
        if at % 4096:
            at = (at + 4095) // 4096 * 4096
        f.seek(at)
        f.write(struct.pack("<4sB3xQQIII", b"dfWR", 4, salt, 999999, 5000, 1, 1) + b"torn" * 300)
    else:
        inside = [(body, length) for _, kind, body, length in found
                  if kind in (3, 4) and body + length < durable]
        assert inside, f"nothing durable in {path}: {durable}"
        body, length = inside[len(inside) // 2]
        at = body + length // 2
        f.seek(at)
        f.write(bytes([data[at] ^ 0x10]))
print(f"{number:06d} {at}")
EOF
wal() { python3 -B "$CLUSTER/wal.py" "$CLUSTER/n$1/db/wal" "$2"; }

was=$(leader)
# shellcheck disable=SC2046
set -- $(others "$was")
victim=$1
for n in $NODE_LIST; do
	mkdir "$(mnt "$n")/w$n" || fail "mkdir"
	writer "$n" "$(mnt "$n")/w$n"
done
for n in $NODE_LIST; do
	must_within "$LIMIT" writer_has "$n" 50
done

# --- torn
ctl kill "$victim" || fail "kill"
torn=$(wal "$victim" tear) || fail "tear"
echo "node $victim: half a record behind the end, segment ${torn% *} at ${torn#* }"
ctl start "$victim" || fail "torn: start"
ctl wait "$victim" || fail "torn: node $victim: not current"
for n in $(others "$victim"); do
	writer_goes_on "$n" 20
	writer_no_error "$n"
done
writers_stop
for n in $NODE_LIST; do
	for m in $NODE_LIST; do
		writer_kept "$n" "$(mnt "$m")/w$n" ||
		    fail "torn: writer $n: lost on node $m"
	done
done
must_trees_equal .

# --- rotten
ctl stop "$victim" || fail "stop"
rot=$(wal "$victim" rot) || fail "rot"
segment=${rot% *}
echo "node $victim: a bit flipped in segment $segment at ${rot#* }"
: >"$CLUSTER/n$victim/log"
ctl start "$victim" >"$CLUSTER/out" 2>&1 && fail "rot: node $victim started"
[ -z "$(ctl pids "$victim")" ] || fail "rot: node $victim runs"
log=$(ctl log "$victim")
grep -q "segment $segment" "$log" || fail "rot: segment $segment not in the log"
grep -qi panicked "$log" && fail "rot: panic"
ls "$(mnt "$victim")/w$victim" 2>/dev/null && fail "rot: node $victim serves"
# Nor does it at the next try.
ctl start "$victim" >"$CLUSTER/out" 2>&1 && fail "rot: node $victim started"
for n in $(others "$victim"); do
	dfsctl "$n" status >/dev/null || fail "rot: node $n: $(dfsctl "$n" status)"
	echo "$n" >"$(mnt "$n")/without.$n" || fail "rot: write on node $n"
done

# With the bit as it was the node is as well as before.
[ "$(wal "$victim" heal)" = "$rot" ] || fail "heal"
ctl start "$victim" || fail "healed: start"
ctl wait "$victim" || fail "healed: node $victim: not current"
must_trees_equal .
