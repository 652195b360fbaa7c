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

# garbage.sh: nonsense on the peer port and on the control socket closes the
# connection it came on.  Nothing else happens: all processes live on, every
# node is current, and writes go on while it rains.

. "$(dirname "$0")/../lib.sh"
cluster_up 3

# The hellos and frames of raftd/src/peer/frame.rs and common/src/imsg.rs.
cat >"$CLUSTER/garbage.py" <<'EOF'
import os, random, re, socket, struct, sys, time

where, top, cluster = sys.argv[1:]
random.seed(1)
PATIENCE = 20


def constant(path, name):
    with open(os.path.join(top, path)) as f:
        return int(re.search(rf"\b{name}: u\d+ = (\d+);", f.read()).group(1))


PEER_VERSION = constant("raftd/src/peer/frame.rs", "VERSION")
IMSG_VERSION = constant("common/src/imsg.rs", "IMSG_VERSION")


def store(node):
    """The id by which a node's data directory is known."""
    try:
        with open(os.path.join(cluster, f"n{node}", "db", "identity")) as f:
            return int(re.search(r"^store (\w+)$", f.read(), re.M).group(1), 16)
    except FileNotFoundError:
        return 1


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def hello(magic=b"dfsdpeer", version=PEER_VERSION, cluster=b"demo", sender=2, to=1, length=None,
          theirs=None, ours=0):
    length = len(cluster) if length is None else length
    theirs = store(sender) if theirs is None else theirs
    return struct.pack("<8sHB5xQQ64sQQ", magic, version, length, sender, to, cluster, theirs, ours)


def frame(head, payload=b"", head_len=None, payload_len=None, crc=None):
    start = struct.pack("<II", len(head) if head_len is None else head_len,
                        len(payload) if payload_len is None else payload_len)
    crc = crc32c(start + head) if crc is None else crc
    return start + struct.pack("<II", crc, 0) + head + payload


def imsg(kind, payload, length=None):
    return struct.pack("<IIII", kind, 16 + len(payload) if length is None else length, 0, 0) + payload


# What is sent, and whether we say that no more will come.
PEER = {
    "noise": (os.urandom(4096), False),
    "an HTTP request": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(112), False),
    "silence": (b"", False),
    "half a hello": (hello()[:50], False),
    "half a hello and the end": (hello()[:50], True),
    "another magic": (hello(magic=b"dfsdpeeR"), False),
    "another version": (hello(version=999), False),
    "another cluster": (hello(cluster=b"prod"), False),
    "a name of no length": (hello(length=0), False),
    "a name too long": (hello(length=255), False),
    "for another node": (hello(to=3), False),
    "from a stranger": (hello(sender=77), False),
    "from this node": (hello(sender=1), False),
    "from no store": (hello(theirs=0), False),
    "from another store": (hello(theirs=4711), False),
    "for another store": (hello(ours=4711), False),
    "noise after hello": (hello() + os.urandom(4096), False),
    "head of 4 GiB": (hello() + frame(b"", head_len=0xFFFFFFFF), False),
    "head too long": (hello() + frame(b"", head_len=(8 << 20) + 1), False),
    "payload of 4 GiB": (hello() + frame(b"\0" * 16, payload_len=0xFFFFFFFF), False),
    "empty head": (hello() + frame(b""), False),
    "wrong checksum": (hello() + frame(b"\x0b" * 16, crc=1), False),
    "head of zeros": (hello() + frame(bytes(64)), False),
    "head of ones": (hello() + frame(b"\xff" * 64), False),
    "unknown message": (hello() + frame(b"\x7f"), False),
    "answer without question": (hello() + frame(b"\x0c\x05"), False),
    "payload nobody asked for": (hello() + frame(b"\x0b", b"x" * 1000), False),
    "truncated frame": (hello() + frame(b"\x0b" * 100)[:60], True),
    "truncated payload": (hello() + frame(b"\x09\x01" * 20, b"x" * 1000)[:300], True),
}
for n in range(20):
    head = bytes([random.randrange(13)]) + random.randbytes(random.randrange(200))
    PEER[f"random message {n}"] = (hello(sender=2 + n % 2) + frame(head), True)

VERSION = imsg(0, struct.pack("<I", IMSG_VERSION))
CONTROL = {
    "noise": (os.urandom(4096), False),
    "another version": (imsg(0, struct.pack("<I", 999)), False),
    "no version": (imsg(7, b"\0"), False),
    "a version too long": (imsg(0, bytes(1000)), False),
    "frame of 2 GiB": (VERSION + imsg(7, b"\0", length=0x7FFFFFFF), False),
    "oversize frame": (VERSION + imsg(7, bytes(20000)), False),
    "frame shorter than its header": (VERSION + imsg(7, b"", length=3), False),
    "frame of no length": (VERSION + imsg(7, b"", length=0), False),
    "an answer": (VERSION + imsg(8, b"\0"), False),
    "unknown channel": (VERSION + imsg(99, b"\0"), False),
    "unknown request": (VERSION + imsg(7, b"\x63"), False),
    "empty request": (VERSION + imsg(7, b""), False),
    "request and more": (VERSION + imsg(7, b"\0" * 50), False),
    "mount of no number": (VERSION + imsg(7, b"\x07\xff\xff\xff\xff\xff"), False),
    "marked for a descriptor": (VERSION + imsg(7, b"\0", length=0x80000011), False),
    "truncated header": (VERSION + imsg(7, b"\0")[:9], True),
    "truncated request": (VERSION + imsg(7, b"\0" * 40)[:30], True),
    "nothing": (b"", True),
}


def connect(where):
    if ":" in where:
        host, port = where.rsplit(":", 1)
        return socket.create_connection((host, int(port)), timeout=PATIENCE)
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(PATIENCE)
    s.connect(where)
    return s


def closed(s):
    """Reads what is said to us until the other end closes."""
    end = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < end:
            if not s.recv(65536):
                return True
    except socket.timeout:
        return False
    except OSError:
        return True
    return False


def answered(s, *requests):
    """What is no nonsense gets an answer, or all of this tests nothing."""
    for data, start in requests:
        s.sendall(data)
        got = s.recv(65536)
        if not got or not got.startswith(start):
            sys.exit(f"{where}: no answer")
    s.close()


if ":" in where:
    answered(connect(where), (hello(), b"dfsdpeer"), (frame(b"\x0b"), b""))
else:
    answered(connect(where), (VERSION + imsg(7, b"\0"), VERSION[:8]))
bad = 0
waiting = []
for name, (data, ends) in (PEER if ":" in where else CONTROL).items():
    s = connect(where)
    try:
        s.sendall(data)
        if ends:
            s.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    waiting.append((name, s))
for name, s in waiting:
    if not closed(s):
        print(f"{where}: not closed: {name}", file=sys.stderr)
        bad = 1
    s.close()

# A descriptor where none is wanted.
if ":" not in where:
    s = connect(where)
    try:
        s.sendall(VERSION)
        message = imsg(7, b"\0", length=0x80000011)
        s.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", 0))])
    except OSError:
        pass
    if not closed(s):
        print(f"{where}: not closed: descriptor", file=sys.stderr)
        bad = 1
else:
    # A crowd that says nothing, larger than what is let in at a time.
    crowd = [connect(where) for _ in range(200)]
    if not all(closed(s) for s in crowd):
        print(f"{where}: not closed: a crowd", file=sys.stderr)
        bad = 1
sys.exit(bad)
EOF

for n in $NODE_LIST; do
	ctl pids "$n"
done | sort >"$CLUSTER/pids.before"
for n in $NODE_LIST; do
	mkdir "$(mnt "$n")/w$n" || fail "mkdir"
	writer "$n" "$(mnt "$n")/w$n"
done

peer=$(sed -n 's/^listen on \(.*\) port \(.*\)/\1:\2/p' "$CLUSTER/n1/conf")
ctl exec 2 python3 -B "$CLUSTER/garbage.py" "$peer" "$TOP" "$CLUSTER" &
python3 -B "$CLUSTER/garbage.py" "$(ctl sock 1)" "$TOP" "$CLUSTER" || fail "control socket"
for n in $NODE_LIST; do
	dfsctl "$n" status >/dev/null || fail "node $n: $(dfsctl "$n" status)"
done
wait $! || fail "peer port"

for n in $NODE_LIST; do
	dfsctl "$n" status >/dev/null || fail "node $n: $(dfsctl "$n" status)"
	writer_goes_on "$n" 20
done
writers_stop
for n in $NODE_LIST; do
	writer_no_error "$n"
	ctl pids "$n"
done | sort >"$CLUSTER/pids.after"
cmp "$CLUSTER/pids.before" "$CLUSTER/pids.after" || fail "a process died"
grep -il panicked "$CLUSTER"/n*/log && fail "a panic in the log"
must_trees_equal .
