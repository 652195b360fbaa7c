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

# opens.sh: what open(2) of a file costs that has not changed: no flush of any
# disk; on the leader nothing on the network either, and on another node one
# question to the leader, which those who open at the same time share.  Counted,
# against what an idle cluster sends.

. "$(dirname "$0")/../lib.sh"
cluster_up 3
grep -q '^net=netns' "$CLUSTER/cluster" || skip "no network namespaces"
lead=$(leader)
follow=$(others "$lead" | head -n 1)
raftd_of() { ctl pids "$1" | awk '$1 == "raftd" { print $2 }'; }

LEAD=$lead FOLLOW=$follow LEAD_PID=$(raftd_of "$lead") FOLLOW_PID=$(raftd_of "$follow") \
    DFSCTL=$BIN/dfsctl python3 -B "$TOP/regress/cluster/nodes.py" 200 <<'EOF' || fail "see above"
import json

OPENS = 1600


def packets(pid):
    """Sent by the node that this raftd runs on, so far."""
    for line in open(f"/proc/{pid}/net/dev"):
        name, _, fields = line.partition(":")
        if name.strip() == "eth0":
            return int(fields.split()[9])
    raise AssertionError("no eth0")


def flushes(node):
    out = subprocess.check_output([os.environ["DFSCTL"], "-s", f"{CLUSTER}/n{node}/dfsd.sock", "-j", "show", "log"])
    return json.loads(out)["flushes"]


def quiet(node):
    """Waits until nothing is written any more: no times of access, no marks."""
    seen = [flushes(node), time.monotonic()]
    def still():
        now = flushes(node)
        if now != seen[0]:
            seen[:] = [now, time.monotonic()]
        return time.monotonic() - seen[1] > 1
    eventually(still, "flushes go on")


def use(mount, rounds):
    for k in range(rounds):
        same(len(get(f"{mount}/f/{k % 20}")), 3000)
        os.stat(f"{mount}/f/{k % 20}")


def cost(node, pid, work):
    quiet(node)
    start, before = time.monotonic(), packets(pid)
    eventually(lambda: time.monotonic() - start > 2)
    rate = (packets(pid) - before) / (time.monotonic() - start)
    before, flushed, start = packets(pid), flushes(node), time.monotonic()
    work()
    sent = packets(pid) - before - rate * (time.monotonic() - start)
    return sent / OPENS, (flushes(node) - flushed) / OPENS


os.mkdir(f"{A}/f")
for k in range(20):
    put(f"{A}/f/{k}", bytes(3000))
for name, shares in (("LEAD", (0.2, 0.2)), ("FOLLOW", (1.6, 1.2))):
    node, pid = int(os.environ[name]), int(os.environ[name + "_PID"])
    mount = MOUNTS[node - 1]
    everywhere("f", "19")
    use(mount, 40)

    def many(_):
        use(mount, OPENS // 8)
        return True
    single = None
    for work, share in ((lambda: use(mount, OPENS), shares[0]), (lambda: processes(8, many), shares[1])):
        sent, flushed = cost(node, pid, work)
        print(f"{name.lower()}: {sent:.3f} packets, {flushed:.3f} flushes an open")
        check(flushed < 0.01, "flushes")
        check(sent < share, "packets")
        # Those at the same time ask once.
        check(single is None or sent < max(0.6 * single, 0.2), "a question each")
        single = sent
EOF
