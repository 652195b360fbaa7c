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

# orphans.sh: files that have lost their last name while they are open.  Who
# has them open reads them whole as long as its node serves, and when fused,
# raftd or whole nodes are killed over it all that they took is given back.

. "$(dirname "$0")/../lib.sh"
cluster_up 3
lead=$(leader)
# shellcheck disable=SC2046
set -- $(others "$lead")
follow=$1

# Each program keeps some open files without names on its node, made there and
# unlinked there or on the next one.  It counts those that it let go of.
mkdir "$(mnt 1)/d" || fail "mkdir"
: >"$CLUSTER/holders"
LIMIT=600 python3 -B "$TOP/regress/cluster/nodes.py" 600 >"$CLUSTER/says" 2>&1 <<'EOF' &
import threading

SIZE = 40_000


class Holder(threading.Thread):
    def __init__(self, node):
        super().__init__(daemon=True)
        self.node, self.mount, self.other = node, MOUNTS[node - 1], MOUNTS[node % len(MOUNTS)]
        self.held, self.errors, self.wrong = [], 0, None
        self.count = open(f"{CLUSTER}/held.{node}", "w", buffering=1)

    def run(self):
        k = 0
        while there(f"{CLUSTER}/holders"):
            k += 1
            try:
                self.hold(k)
                if len(self.held) > 8:
                    self.let_go()
                    self.count.write(".\n")
            except OSError:
                # Its fused or its raftd is dead, or the other one's.
                self.errors += 1
                time.sleep(0.05)
        while self.held:
            try:
                self.let_go()
            except OSError:
                self.errors += 1

    def hold(self, k):
        name, data = f"{self.node}.{k}", os.urandom(SIZE)
        fd = os.open(f"{self.mount}/d/{name}", os.O_RDWR | os.O_CREAT)
        try:
            write(fd, data)
            os.fsync(fd)
            os.unlink(f"{self.other if k % 2 else self.mount}/d/{name}")
        except OSError:
            os.close(fd)
            raise
        self.held.append((fd, data))

    def let_go(self):
        fd, data = self.held.pop(0)
        try:
            got = b""
            # A call may end with what the kernel had, short of an error.
            while more := os.pread(fd, SIZE, len(got)):
                got += more
            if got != data:
                self.wrong = f"{len(got)} bytes, and not those written"
        finally:
            os.close(fd)


everywhere("d")
holders = [Holder(n + 1) for n in range(len(MOUNTS))]
for holder in holders:
    holder.start()
for holder in holders:
    holder.join()
    check(holder.wrong is None, f"node {holder.node}", holder.wrong)
    print(f"node {holder.node}: {holder.errors} errors")
EOF
holders=$!

held() { awk 'END { print NR }' "$CLUSTER/held.$1"; }
more_than() { [ "$(held "$1")" -gt "$2" ]; }
# Blocks and inodes that the tree takes, as that node shows it.
used() { stat -f -c '%b %f %c %d' "$(mnt "$1")" | awk '{ print $1 - $2, $3 - $4 }'; }
is_as_before() { [ "$(used "$1")" = "$before" ]; }
all_go_on() {
	for n in $NODE_LIST; do
		kill -0 $holders 2>/dev/null || fail "$(cat "$CLUSTER/says")"
		must_within "$LIMIT" more_than "$n" $(($(held "$n") + 20))
	done
}
node_gone() { [ -z "$(ctl pids "$1")" ]; }

before=$(used 1)
must_within "$LIMIT" [ -e "$CLUSTER/held.3" ]
all_go_on
for victim in $follow $lead; do
	for what in -f -r "" -f ""; do
		# shellcheck disable=SC2086
		ctl kill $what "$victim" || fail "kill $what $victim"
		if [ "$what" != -f ]; then
			must_within "$LIMIT" node_gone "$victim"
			ctl start "$victim" || fail "start"
		fi
		ctl wait "$victim" || fail "not current"
		all_go_on
	done
done
rm "$CLUSTER/holders"
wait $holders || fail "$(cat "$CLUSTER/says")"
cat "$CLUSTER/says"
# Those that a kill has left their names.
rm -f "$(mnt 1)"/d/*
for n in $NODE_LIST; do
	must_within "$LIMIT" is_as_before "$n"
done
