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

//! raftd's side towards the other nodes: what it sends them (network.rs),
//! what it answers them (server.rs), and the frames between (frame.rs).
//! Peers talk in clear; every byte from them is checked before use.

pub mod frame;
pub mod network;
pub mod server;

use crate::lease::Heard;
use crate::raft::Raft;
use common::fs::NodeId;
use common::{log_info, log_warn, log_warnx};
use frame::{Conn, Identity, PeerMsg, Pong};
use openraft::async_runtime::watch::WatchReceiver;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

/// Where the other nodes are, and how they do.
pub struct Peers {
    pub me: Identity,
    table: Mutex<HashMap<NodeId, Peer>>,
    /// Highest index by which a caller anywhere may have been answered, as far
    /// as that is this node's doing: it has applied it, or told a peer as its
    /// leader that it is committed.
    answered: AtomicU64,
    /// The highest floor of the log that a peer has told; what it says stays
    /// true.
    floor: AtomicU64,
    /// This node gives its leadership away: its lease proves nothing now.
    handing_over: AtomicBool,
    /// Who has asked this node as the leader, and when.
    pub heard: Heard,
}

struct Peer {
    addr: SocketAddr,
    descr: Option<String>,
    up: bool,
    needs_resync: bool,
    since: Instant,
    /// The last index of its log, as it told.
    last_index: u64,
    /// The highest index that it has told to have applied.
    applied: u64,
    /// Why it or we want nothing of the other, if that was logged.
    refused: Option<String>,
    waits: Arc<Waits>,
}

/// Whether a peer waits to hear what is committed.
#[derive(Default)]
pub struct Waits {
    since: Mutex<Option<Instant>>,
    wake: Notify,
}

impl Waits {
    /// It means to read: what was committed by now.
    pub fn reads(&self) {
        self.wake.notify_one();
    }

    /// It has proposed something, and its callers wait.
    pub fn proposes(&self) {
        *self.since.lock().unwrap_or_else(|e| e.into_inner()) = Some(Instant::now());
        self.wake.notify_one();
    }

    /// Whether it did that a moment ago.
    pub fn has_proposed(&self) -> bool {
        let since = *self.since.lock().unwrap_or_else(|e| e.into_inner());
        since.is_some_and(|at| at.elapsed() < PROPOSES_FOR)
    }

    /// Until it waits.
    pub async fn begun(&self) {
        self.wake.notified().await;
    }
}

/// How one peer does, as dfsctl shows it.
pub struct PeerView {
    pub up: bool,
    pub needs_resync: bool,
    pub since: Duration,
    pub last_index: u64,
}

const PING_INTERVAL: Duration = Duration::from_secs(1);
/// Who has proposed something is likely to go on.
const PROPOSES_FOR: Duration = Duration::from_millis(200);

impl Peers {
    pub fn new(me: Identity, nodes: &[common::conf::Peer]) -> Arc<Peers> {
        let peers = Peers {
            me,
            table: Mutex::new(HashMap::new()),
            answered: AtomicU64::new(0),
            floor: AtomicU64::new(0),
            handing_over: AtomicBool::new(false),
            heard: Heard::default(),
        };
        peers.reconf(nodes);
        Arc::new(peers)
    }

    fn table(&self) -> MutexGuard<'_, HashMap<NodeId, Peer>> {
        self.table.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes over addresses and descriptions from a new dfsd.conf.
    pub fn reconf(&self, nodes: &[common::conf::Peer]) {
        let mut table = self.table();
        for node in nodes {
            let peer = table.entry(node.id).or_insert_with(|| Peer {
                addr: node.addr,
                descr: None,
                up: false,
                needs_resync: false,
                since: Instant::now(),
                last_index: 0,
                applied: 0,
                refused: None,
                waits: Arc::default(),
            });
            peer.addr = node.addr;
            peer.descr = node.descr.clone();
        }
    }

    pub fn knows(&self, id: NodeId) -> bool {
        id != self.me.node && self.table().contains_key(&id)
    }

    pub fn view(&self, id: NodeId) -> Option<PeerView> {
        self.table().get(&id).map(|p| PeerView {
            up: p.up,
            needs_resync: p.needs_resync,
            since: p.since.elapsed(),
            last_index: p.last_index,
        })
    }

    /// The other members that this node has never met.  Until it has met all it
    /// does not vote: if its data directory is a new one under an old id, one
    /// of them remembers, and that may be the only one which is left of those
    /// that know what the old one acknowledged.
    pub fn unmet(&self, raft: &Raft) -> Vec<NodeId> {
        let m = raft.metrics();
        let m = m.borrow_watched();
        let met = self.me.store.met();
        let members = m.membership_config.voter_ids();
        members
            .filter(|id| *id != self.me.node && met.store_of(*id).is_none())
            .collect()
    }

    pub fn waits(&self, id: NodeId) -> Arc<Waits> {
        let table = self.table();
        let waits = table.get(&id).map(|p| p.waits.clone());
        waits.unwrap_or_default()
    }

    /// To be called before a caller is answered by that entry, and before a peer
    /// is told that it is committed.
    pub fn will_answer(&self, index: u64) {
        self.answered.fetch_max(index, Ordering::SeqCst);
    }

    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    /// Up to where nobody needs the log, as far as peers have told.
    pub fn floor(&self) -> u64 {
        self.floor.load(Ordering::Relaxed)
    }

    /// What that node has applied at least, this one or a peer.
    pub fn applied(&self, id: NodeId) -> u64 {
        match id == self.me.node {
            true => self.me.store.agreed(),
            false => self.table().get(&id).map_or(0, |p| p.applied),
        }
    }

    pub fn hand_over(&self, now: bool) {
        self.handing_over.store(now, Ordering::SeqCst);
    }

    pub fn is_handing_over(&self) -> bool {
        self.handing_over.load(Ordering::SeqCst)
    }

    /// A connection to that node, whose identity is checked.
    pub async fn connect(&self, to: NodeId, limit: Duration) -> io::Result<Conn> {
        let addr = self.table().get(&to).map(|p| p.addr);
        let Some(addr) = addr else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no such peer"));
        };
        frame::connect(&self.me, to, addr, limit).await
    }

    /// Notes what a ping came to; logs the change.
    fn heard(&self, id: NodeId, pong: io::Result<Pong>) {
        if let Ok(pong) = &pong {
            self.floor.fetch_max(pong.floor, Ordering::Relaxed);
        }
        let label = {
            let mut table = self.table();
            let Some(peer) = table.get_mut(&id) else {
                return;
            };
            if let Ok(pong) = &pong {
                peer.last_index = pong.last_index;
                peer.applied = peer.applied.max(pong.applied);
            }
            let refused = match &pong {
                Err(e) if e.kind() == io::ErrorKind::InvalidData => Some(e.to_string()),
                _ => None,
            };
            let changed = peer.up != pong.is_ok();
            if changed {
                peer.up = pong.is_ok();
                peer.since = Instant::now();
            } else if refused.is_none() || refused == peer.refused {
                return;
            }
            peer.refused = refused;
            peer.label()
        };
        match pong {
            Ok(_) => log_info!("{label}: up"),
            Err(e) => log_warn!(e, "{label}: down"),
        }
    }

    /// The task that asks a peer how it does, for ever: openraft talks only
    /// from the leader, and every node shall know.
    pub async fn watch(self: Arc<Self>, id: NodeId) {
        let mut conn = None;
        loop {
            let ping = timeout(PING_INTERVAL, self.ping(id, &mut conn)).await;
            let pong = ping.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            if pong.is_err() {
                conn = None;
            }
            self.heard(id, pong);
            sleep(PING_INTERVAL).await;
        }
    }

    async fn ping(&self, id: NodeId, conn: &mut Option<Conn>) -> io::Result<Pong> {
        let conn = match conn {
            Some(conn) => conn,
            None => conn.insert(self.connect(id, PING_INTERVAL).await?),
        };
        conn.writer.write(PeerMsg::Ping).await?;
        match conn.reader.read().await? {
            Some(PeerMsg::Pong(pong)) => Ok(pong),
            Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "no pong")),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The log that the peer needs is gone; only a snapshot could help it.
    pub fn gave_up(&self, id: NodeId) {
        let label = match self.table().get_mut(&id) {
            Some(peer) if !peer.needs_resync => {
                peer.needs_resync = true;
                peer.label()
            }
            _ => return,
        };
        log_warnx!("{label}: needs resync: the log it lacks is gone");
    }
}

impl Peer {
    /// How log lines name it.
    fn label(&self) -> String {
        match &self.descr {
            Some(descr) => format!("peer {} ({descr})", self.addr),
            None => format!("peer {}", self.addr),
        }
    }
}
