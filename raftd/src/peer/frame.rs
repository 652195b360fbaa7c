// Copyright (c) 2026 The dfsd authors
//
// Permission to use, copy, modify, and distribute this software for any
// purpose with or without fee is hereby granted, provided that the above
// copyright notice and this permission notice appear in all copies.
//
// THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES
// WITH REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED WARRANTIES OF
// MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR
// ANY SPECIAL, DIRECT, INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES
// WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN
// ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF
// OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.

//! Frames between the raftds of two nodes.  raftd only; every byte here comes
//! from the network: a wrong one closes the connection it came on.
//!
//! A connection opens with a hello from each side, 112 bytes:
//!
//! ```text
//!  offset size
//!       0    8  "dfsdpeer"
//!       8    2  version, little-endian as all that follows
//!      10    1  length of the cluster's name
//!      11    5  zero
//!      16    8  id of the sender
//!      24    8  id of whom it means to reach
//!      32   64  name of the cluster, zero-padded
//!      96    8  id of the sender's store
//!     104    8  id of the other one's store as the sender knows it; 0 if they
//!               have not met
//! ```
//!
//! Then frames, each:
//!
//! ```text
//!  offset size
//!       0    4  length of the head, at most HEAD_MAX
//!       4    4  length of the payloads, at most PAYLOAD_MAX
//!       8    4  crc32c of bytes 0 to 7 and the head
//!      12    4  zero
//!      16       head: a PeerMsg in postcard
//!               payloads of its entries or proposals, in their order, whose
//!               lengths and checksums are in the head
//! ```

use crate::fs::op::{Op, Origin};
use crate::payload::{At, Payload};
use crate::raft::{EntryPayload, TypeConfig};
use crate::store::met::{Meeting, StoreId};
use crate::store::Store;
use bytes::{Buf, Bytes, BytesMut};
use common::fs::NodeId;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Moves with every change of the messages below.  2: stores in the hello.
const VERSION: u16 = 6;
const MAGIC: &[u8; 8] = b"dfsdpeer";
const HELLO_LEN: usize = 112;
const NAME_LEN: usize = 64;
const HEADER_LEN: usize = 16;
/// A batch of small entries, each some hundred bytes, names and links longer.
const HEAD_MAX: usize = 8 << 20;
/// A batch of payloads is at most 1 MiB, or one payload.
const PAYLOAD_MAX: usize = 4 << 20;
/// Payloads up to this total are copied behind the head, to go in one write.
const COALESCE_MAX: usize = 64 << 10;
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers come in the order of the requests.
#[derive(Debug, Serialize, Deserialize)]
pub enum PeerMsg {
    Append(AppendEntriesRequest<TypeConfig>),
    AppendRep(StreamAppendResult<TypeConfig>),
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    VoteRep(VoteResponse<TypeConfig>),
    TransferLeader(TransferLeaderRequest<TypeConfig>),
    TransferLeaderRep(TransferLeaderResponse<TypeConfig>),
    /// To the leader: up to where must a read wait?
    ReadIndex,
    /// None: not the leader, or it cannot prove that it is.
    ReadIndexRep(Option<u64>),
    /// To the leader, in the order of the session; not answered, unless it
    /// is not the leader.
    Propose(Vec<Proposal>),
    NotLeader,
    Ping,
    Pong(Pong),
}

/// How the sender of it does.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Pong {
    /// Of its log.
    pub last_index: u64,
    /// To its tree: it is agreed, and on its disk.
    pub applied: u64,
    /// Up to where nobody needs the log, by what it has applied.
    pub floor: u64,
}

/// An operation on its way to the leader, who makes a Command of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Proposal {
    pub origin: Option<Origin>,
    pub op: Op,
    pub payload: Payload,
}

impl PeerMsg {
    /// The payloads that ride behind, in their order.
    fn payloads(&mut self) -> Vec<&mut Payload> {
        match self {
            PeerMsg::Append(rpc) => rpc
                .entries
                .iter_mut()
                .filter_map(|e| match &mut e.payload {
                    EntryPayload::Normal(cmd) => Some(&mut cmd.payload),
                    _ => None,
                })
                .collect(),
            PeerMsg::Propose(batch) => batch.iter_mut().map(|p| &mut p.payload).collect(),
            _ => Vec::new(),
        }
    }
}

/// Both halves of a connection after the hello.
pub struct Conn {
    pub reader: FrameReader,
    pub writer: FrameWriter,
    /// Who is at the other end.
    pub peer: NodeId,
}

/// What this node says of itself in a hello, and whom it has met.
pub struct Identity {
    pub cluster: String,
    pub node: NodeId,
    pub store: Arc<Store>,
}

/// What the other side's hello says.
struct Hello {
    from: NodeId,
    store: StoreId,
    /// Our store, as it knows it.
    ours: u64,
}

fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl Identity {
    fn hello(&self, to: NodeId) -> [u8; HELLO_LEN] {
        let mut buf = [0; HELLO_LEN];
        let name = self.cluster.as_bytes();
        let len = name.len().min(NAME_LEN);
        buf[..8].copy_from_slice(MAGIC);
        buf[8..10].copy_from_slice(&VERSION.to_le_bytes());
        buf[10] = len as u8;
        buf[16..24].copy_from_slice(&self.node.0.to_le_bytes());
        buf[24..32].copy_from_slice(&to.0.to_le_bytes());
        buf[32..32 + len].copy_from_slice(&name[..len]);
        buf[96..104].copy_from_slice(&self.store.id().0.to_le_bytes());
        let known = self.store.met().store_of(to).map_or(0, |id| id.0);
        buf[104..].copy_from_slice(&known.to_le_bytes());
        buf
    }

    /// Checks a hello.
    fn check(&self, mut hello: &[u8]) -> io::Result<Hello> {
        let mut magic = [0; 8];
        hello.copy_to_slice(&mut magic);
        if &magic != MAGIC {
            return Err(bad("hello: not a dfsd peer"));
        }
        let version = hello.get_u16_le();
        if version != VERSION {
            return Err(bad(format!("hello: version {version}, want {VERSION}")));
        }
        let len = hello.get_u8() as usize;
        hello.advance(5);
        let from = NodeId(hello.get_u64_le());
        let to = NodeId(hello.get_u64_le());
        match hello.get(..len) {
            Some(name) if name == self.cluster.as_bytes() => {}
            _ => return Err(bad("hello: another cluster")),
        }
        if to != self.node {
            return Err(bad(format!("hello: meant for node {to}")));
        }
        hello.advance(NAME_LEN);
        Ok(Hello {
            from,
            store: StoreId(hello.get_u64_le()),
            ours: hello.get_u64_le(),
        })
    }

    /// Whether both still have the stores that they had when they met.  To be
    /// asked of peers only: it remembers whom it has not met before.
    fn meet(&self, hello: &Hello) -> io::Result<()> {
        let met = self.store.met();
        if hello.store.0 == 0 {
            return Err(bad("hello: no store"));
        }
        if hello.ours != 0 && hello.ours != self.store.id().0 {
            return Err(bad("it knows another data directory of this node"));
        }
        let meeting = match met.store_of(hello.from) {
            Some(_) => met.meet(hello.from, hello.store),
            None => tokio::task::block_in_place(|| met.meet(hello.from, hello.store)),
        };
        match meeting? {
            Meeting::First | Meeting::Again => Ok(()),
            Meeting::Another => Err(bad("it has another data directory than before")),
        }
    }
}

/// Connects to a node and makes sure that it is the one meant.
pub async fn connect(
    me: &Identity,
    to: NodeId,
    addr: std::net::SocketAddr,
    limit: Duration,
) -> io::Result<Conn> {
    let connecting = async {
        let mut stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&me.hello(to)).await?;
        let mut hello = [0; HELLO_LEN];
        stream.read_exact(&mut hello).await?;
        let hello = me.check(&hello)?;
        let peer = hello.from;
        if peer != to {
            return Err(bad(format!("hello: node {peer} answers for node {to}")));
        }
        me.meet(&hello)?;
        Ok(Conn::new(stream, peer))
    };
    timeout(limit, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The other side of connect(); `knows` tells whether a node is a peer.
pub async fn accept(
    me: &Identity,
    knows: impl Fn(NodeId) -> bool,
    mut stream: TcpStream,
) -> io::Result<Conn> {
    let greeting = async {
        stream.set_nodelay(true)?;
        let mut hello = [0; HELLO_LEN];
        stream.read_exact(&mut hello).await?;
        let hello = me.check(&hello)?;
        if !knows(hello.from) {
            return Err(bad("hello: not a peer of ours"));
        }
        // Also to one with another store than before, so that it learns why.
        stream.write_all(&me.hello(hello.from)).await?;
        me.meet(&hello)?;
        io::Result::Ok(hello.from)
    };
    let peer = timeout(HELLO_TIMEOUT, greeting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    Ok(Conn::new(stream, peer))
}

impl Conn {
    fn new(stream: TcpStream, peer: NodeId) -> Conn {
        let (reader, writer) = stream.into_split();
        Conn {
            reader: FrameReader {
                half: reader,
                buf: BytesMut::with_capacity(16 << 10),
            },
            writer: FrameWriter { half: writer },
            peer,
        }
    }
}

pub struct FrameReader {
    half: OwnedReadHalf,
    buf: BytesMut,
}

impl FrameReader {
    /// The next message, its payloads joined and verified; None at the end.
    /// May be dropped while it waits: what was read stays in the buffer.
    pub async fn read(&mut self) -> io::Result<Option<PeerMsg>> {
        loop {
            if let Some(msg) = self.parse()? {
                return Ok(Some(msg));
            }
            if self.half.read_buf(&mut self.buf).await? == 0 {
                return match self.buf.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }

    fn parse(&mut self) -> io::Result<Option<PeerMsg>> {
        let Some(mut header) = self.buf.get(..HEADER_LEN) else {
            self.buf.reserve(HEADER_LEN);
            return Ok(None);
        };
        let crc = crc32c::crc32c(&header[..8]);
        let head_len = header.get_u32_le() as usize;
        let payload_len = header.get_u32_le() as usize;
        let want = header.get_u32_le();
        if head_len > HEAD_MAX || payload_len > PAYLOAD_MAX {
            return Err(bad("frame: too large"));
        }
        let len = HEADER_LEN + head_len + payload_len;
        if self.buf.len() < len {
            self.buf.reserve(len - self.buf.len());
            return Ok(None);
        }
        let mut frame = self.buf.split_to(len).freeze();
        frame.advance(HEADER_LEN);
        let head = frame.split_to(head_len);
        if crc32c::crc32c_append(crc, &head) != want {
            return Err(bad("frame: checksum mismatch"));
        }
        let (mut msg, rest) =
            postcard::take_from_bytes::<PeerMsg>(&head).map_err(|e| bad(format!("frame: {e}")))?;
        if !rest.is_empty() {
            return Err(bad("frame: trailing bytes"));
        }
        join(&mut msg, frame)?;
        Ok(Some(msg))
    }
}

/// Gives each payload its part of the bytes behind the head.
fn join(msg: &mut PeerMsg, mut bytes: Bytes) -> io::Result<()> {
    for payload in msg.payloads() {
        let len = payload.len as usize;
        if len > bytes.len() {
            return Err(bad("frame: payload missing"));
        }
        let own = bytes.split_to(len);
        // The log keeps it for a while, and with it all of the buffer that
        // it is a part of: a small one is cheaper to copy.
        let own = match len <= COALESCE_MAX {
            true => Bytes::copy_from_slice(&own),
            false => own,
        };
        // Also of no bytes: the checksum must be theirs.
        payload.join(own)?;
    }
    match bytes.is_empty() {
        true => Ok(()),
        false => Err(bad("frame: trailing payload")),
    }
}

pub struct FrameWriter {
    half: OwnedWriteHalf,
}

impl FrameWriter {
    pub async fn write(&mut self, mut msg: PeerMsg) -> io::Result<()> {
        let mut buf = vec![0; HEADER_LEN];
        buf = postcard::to_extend(&msg, buf).map_err(|e| bad(format!("frame: {e}")))?;
        let head_len = buf.len() - HEADER_LEN;
        let payloads = load(&mut msg)?;
        let total: usize = payloads.iter().map(Bytes::len).sum();
        if head_len > HEAD_MAX || total > PAYLOAD_MAX {
            return Err(bad("frame: too large"));
        }
        let (header, head) = buf.split_at_mut(HEADER_LEN);
        header[..4].copy_from_slice(&(head_len as u32).to_le_bytes());
        header[4..8].copy_from_slice(&(total as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..8]), head);
        header[8..12].copy_from_slice(&crc.to_le_bytes());
        if total <= COALESCE_MAX {
            payloads.iter().for_each(|p| buf.extend_from_slice(p));
            return self.half.write_all(&buf).await;
        }
        self.half.write_all(&buf).await?;
        for payload in &payloads {
            self.half.write_all(payload).await?;
        }
        Ok(())
    }
}

/// The bytes of a message's payloads, read back from the log where needed.
fn load(msg: &mut PeerMsg) -> io::Result<Vec<Bytes>> {
    let payloads = msg.payloads();
    let from_disk = payloads.iter().any(|p| matches!(p.at, At::Log { .. }));
    let read = || {
        payloads
            .iter()
            .filter(|p| p.len > 0)
            .map(|p| p.bytes())
            .collect()
    };
    match from_disk {
        // The pages may have left the cache.
        true => tokio::task::block_in_place(read),
        false => read(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::log_store;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::net::TcpListener;

    /// A node with a data directory of its own, removed at the end.
    struct Node {
        identity: Identity,
        dir: PathBuf,
    }

    impl Drop for Node {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    fn node_of(cluster: &str, node: u64) -> Node {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dfsd-frame-{}.{count}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir).expect("mkdir");
        let mut log = log_store::Options::default();
        log.wal.segment_size = 1 << 16;
        let store = Store::open_with(&dir, cluster, NodeId(node), 1 << 24, &log);
        let identity = Identity {
            cluster: cluster.into(),
            node: NodeId(node),
            store: Arc::new(store.expect("store")),
        };
        Node { identity, dir }
    }

    fn me(node: u64) -> Node {
        node_of("test", node)
    }

    /// Who connects to whom, and what both say.
    async fn greet(from: &Node, to: NodeId, at: &Node) -> (io::Result<Conn>, io::Result<Conn>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("addr");
        tokio::join!(
            async { connect(&from.identity, to, addr, HELLO_TIMEOUT).await },
            async {
                let stream = listener.accept().await.expect("accept").0;
                accept(&at.identity, |id| id == NodeId(1), stream).await
            },
        )
    }

    fn run<F: std::future::Future>(f: F) -> F::Output {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("runtime")
            .block_on(f)
    }

    async fn pair() -> (Conn, Conn) {
        let (client, server) = greet(&me(1), NodeId(2), &me(2)).await;
        (client.expect("connect"), server.expect("accept"))
    }

    fn proposal(bytes: &'static [u8]) -> Proposal {
        Proposal {
            origin: None,
            op: Op::Nop,
            payload: Payload::new(Bytes::from_static(bytes)),
        }
    }

    #[test]
    fn payloads_ride_behind() {
        run(async {
            let (mut a, mut b) = pair().await;
            let batch = vec![proposal(b"one"), proposal(b""), proposal(b"three")];
            a.writer
                .write(PeerMsg::Propose(batch))
                .await
                .expect("write");
            let Some(PeerMsg::Propose(got)) = b.reader.read().await.expect("read") else {
                panic!("another message");
            };
            let got: Vec<Bytes> = got
                .iter()
                .map(|p| p.payload.bytes().expect("bytes"))
                .collect();
            assert_eq!(got, [&b"one"[..], b"", b"three"]);
            drop(a);
            assert!(b.reader.read().await.expect("end").is_none());
        });
    }

    #[test]
    fn strangers_are_refused() {
        run(async {
            let at = me(2);
            for (from, to) in [(node_of("other", 1), 2), (me(1), 3), (me(7), 2)] {
                let (client, server) = greet(&from, NodeId(to), &at).await;
                assert!(client.is_err());
                assert!(server.is_err());
            }
            assert!(at.identity.store.met().store_of(NodeId(1)).is_none());
        });
    }

    #[test]
    fn an_emptied_node_is_refused() {
        run(async {
            let (a, b) = (me(1), me(2));
            for _ in 0..2 {
                let (client, server) = greet(&a, NodeId(2), &b).await;
                assert!(client.is_ok() && server.is_ok());
            }
            // Either side of the connection may be the one that remembers.
            let text = |met: io::Result<Conn>| met.err().expect("refused").to_string();
            let (client, server) = greet(&me(1), NodeId(2), &b).await;
            assert_eq!(text(client), "it knows another data directory of this node");
            assert_eq!(text(server), "it has another data directory than before");
            let (client, server) = greet(&a, NodeId(2), &me(2)).await;
            assert_eq!(text(client), "it has another data directory than before");
            assert_eq!(text(server), "it knows another data directory of this node");
            let (client, server) = greet(&a, NodeId(2), &b).await;
            assert!(client.is_ok() && server.is_ok());
        });
    }

    #[test]
    fn garbage_is_an_error() {
        run(async {
            let (mut a, mut b) = pair().await;
            a.writer.half.write_all(&[0xff; 64]).await.expect("write");
            assert!(b.reader.read().await.is_err());

            let (mut a, mut b) = pair().await;
            a.writer.half.write_all(&[7; 5]).await.expect("write");
            drop(a);
            assert!(b.reader.read().await.is_err());
        });
    }
}
