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

//! The raft engine put together: everything of this node that lives as long
//! as raftd does, how it is wired, and what dfsctl is shown of it.

use crate::age::{self, Age};
use crate::barrier::Barrier;
use crate::fs::inode::ReadError;
use crate::fs::{dedup, dirent, lock, space};
use crate::fused::{Dirty, Mounts};
use crate::lease::{self, Lease, Sent};
use crate::locks::Locks;
use crate::log_space;
use crate::peer::frame::Identity;
use crate::peer::network::NetworkFactory;
use crate::peer::{server, Peers};
use crate::propose::Proposer;
use crate::quota;
use crate::raft::{self, Raft, TypeConfig};
use crate::store::checkpoint::Checkpoint;
use crate::store::log_store::LogStore;
use crate::store::state_machine::{Applied, StateMachine};
use crate::store::Store;
use common::conf::{Conf, MountId};
use common::ctl::{CtlLock, CtlLog, CtlMount, CtlPeer, CtlSummary, PeerState, Role};
use common::fs::{FsError, InodeNo, NodeId};
use common::{fatal, log_info, log_warn, log_warnx};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{RaftMetrics, ServerState};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How often a node makes sure that there is a quorum.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// A quorum counts as lost after so long; an election is over much sooner,
/// and must not cost anybody an error.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// A new node looks so often whether it has met all its peers, and says after
/// some time that it has not.
const UNMET_POLL: Duration = Duration::from_millis(50);
const UNMET_AFTER: Duration = Duration::from_secs(3);
const SHOW_TIMEOUT: Duration = Duration::from_secs(2);
/// For a leader that stops to see another one take over.
const HANDOVER: Duration = Duration::from_secs(2);

pub struct Engine {
    conf: RwLock<Conf>,
    pub store: Arc<Store>,
    raft: Raft,
    peers: Arc<Peers>,
    pub proposer: Arc<Proposer>,
    pub barrier: Barrier,
    mounts: Arc<Mounts>,
    age: Arc<Age>,
    applied: watch::Receiver<u64>,
    quorum: watch::Receiver<bool>,
    started: Instant,
    /// openraft's end is not a failure any more.
    stopping: AtomicBool,
}

/// Those who learn of every applied entry.
struct Wiring {
    proposer: Arc<Proposer>,
    mounts: Arc<Mounts>,
}

impl Engine {
    /// Starts openraft and every task but those that need a descriptor of the
    /// parent.
    pub async fn start(conf: Conf, store: Arc<Store>, nonce: u64) -> Arc<Engine> {
        let me = Identity {
            cluster: conf.cluster.clone(),
            node: conf.node,
            store: store.clone(),
        };
        let peers = Peers::new(me, &conf.peers);
        let wiring: Arc<OnceLock<Wiring>> = Arc::default();
        let at = store.checkpointed().index().unwrap_or(0);
        let (applied_tx, applied) = watch::channel(at);
        let sink = {
            let (wiring, peers) = (wiring.clone(), peers.clone());
            Box::new(move |entry: Applied| {
                let index = entry.index;
                peers.will_answer(index);
                if let Some(to) = wiring.get() {
                    let from = to.proposer.source(&entry);
                    to.mounts.changed(&entry, from);
                    to.proposer.applied(&entry);
                }
                applied_tx.send_replace(index);
            })
        };
        let raft = start_raft(
            &conf,
            &store,
            StateMachine::new(store.clone(), sink),
            &peers,
        )
        .await;
        let proposer = Proposer::new(raft.clone(), peers.clone(), nonce, conf.lock_lease);
        let barrier = Barrier::start(raft.clone(), peers.clone(), applied.clone());
        let (quorum_tx, quorum) = watch::channel(true);
        let (recovered_tx, recovered) = watch::channel(false);
        let lease = Arc::new(Lease::new(conf.lock_lease));
        let locks = Locks::new(store.clone(), proposer.clone(), lease.clone());
        let age = Arc::new(Age::default());
        // What the log knew to be committed openraft has had applied by now.
        let unsure = match age::unsure(store.log()).await {
            Ok(unsure) => unsure,
            Err(e) => fatal!(e, "log"),
        };
        let mounts = Mounts::new(
            locks.clone(),
            barrier.clone(),
            Dirty {
                age: age.clone(),
                unsure,
            },
            recovered,
            quorum.clone(),
            applied.clone(),
        );
        let wired = wiring.set(Wiring {
            proposer: proposer.clone(),
            mounts: mounts.clone(),
        });
        debug_assert!(wired.is_ok());
        for peer in conf.peers.iter().filter(|p| p.id != conf.node) {
            tokio::spawn(peers.clone().watch(peer.id));
        }
        tokio::spawn(proposer.clone().run());
        tokio::spawn(probe(
            barrier.clone(),
            peers.clone(),
            age.clone(),
            lease,
            quorum_tx,
            recovered_tx,
        ));
        tokio::spawn(locks.watch());
        tokio::spawn(lease::expire(raft.clone(), peers.clone(), store.clone()));
        tokio::spawn(mounts.clone().watch_quorum());
        tokio::spawn(mounts.clone().watch_age());
        tokio::spawn(mounts.clone().watch_room());
        tokio::spawn(mounts.clone().release_orphans());
        tokio::spawn(mounts.clone().note_accesses());
        let engine = Arc::new(Engine {
            conf: RwLock::new(conf),
            store,
            raft,
            peers,
            proposer: proposer.clone(),
            barrier,
            mounts,
            age,
            applied,
            quorum,
            started: Instant::now(),
            stopping: AtomicBool::new(false),
        });
        tokio::spawn(log_space::report_capacity(engine.clone(), proposer.clone()));
        tokio::spawn(log_space::move_floor(engine.clone(), proposer));
        tokio::spawn(log_space::purge(engine.clone()));
        tokio::spawn(quota::count(engine.clone()));
        tokio::spawn(engine.clone().watch_leader());
        engine
    }

    pub fn conf(&self) -> Conf {
        self.conf.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    pub fn raft(&self) -> &Raft {
        &self.raft
    }

    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Opens the peer port, and runs for leader, one lease after the start: a
    /// voter that has restarted does not know whom it promised to follow.
    pub async fn serve_peers(self: Arc<Self>, listener: OwnedFd) {
        sleep(raft::LEASE.saturating_sub(self.started.elapsed())).await;
        tokio::spawn(self.clone().elect());
        let listener = std::net::TcpListener::from(listener);
        let listening =
            common::sys::socket::listen(&listener).and_then(|()| TcpListener::from_std(listener));
        match listening {
            Ok(listener) => server::serve(listener, self.peers.clone(), self.raft.clone()).await,
            Err(e) => fatal!(e, "listen"),
        }
    }

    /// Runs for leader once all peers were met.
    async fn elect(self: Arc<Self>) {
        let mut told = Vec::new();
        loop {
            let unmet = self.peers.unmet(&self.raft);
            if unmet.is_empty() {
                break;
            }
            if told != unmet && self.started.elapsed() > UNMET_AFTER {
                let nodes: Vec<String> = unmet.iter().map(NodeId::to_string).collect();
                log_info!("no vote before node {} was met", nodes.join(", "));
                told = unmet;
            }
            sleep(UNMET_POLL).await;
        }
        self.raft.runtime_config().elect(true);
    }

    /// A new configuration; the parent has made sure that only what may
    /// change at run time does.
    pub fn reconf(&self, conf: Conf) {
        self.peers.reconf(&conf.peers);
        *self.conf.write().unwrap_or_else(|e| e.into_inner()) = conf;
    }

    /// A fused is there to be served.
    pub fn attach(&self, mount: MountId, control: OwnedFd, bulk: OwnedFd) {
        let Some(conf) = self.conf().mount(mount).cloned() else {
            log_warnx!("dispatch_parent: IMSG_SOCKET_IPC for mount {mount}, which is not there");
            return;
        };
        if let Err(e) = self.mounts.attach(conf, control, bulk) {
            log_warn!(e, "mount {mount}");
        }
    }

    /// Logs who leads, whenever that changes.
    async fn watch_leader(self: Arc<Self>) {
        let mut metrics = self.raft.server_metrics();
        let mut known = None;
        loop {
            let (leader, term) = {
                let m = metrics.borrow_watched();
                (m.current_leader, m.vote.leader_id.term)
            };
            if leader.is_some() && known != Some((leader, term)) {
                known = Some((leader, term));
                match leader {
                    Some(id) if id == self.peers.me.node => log_info!("leader, term {term}"),
                    Some(id) => log_info!("follower of {id}, term {term}"),
                    None => {}
                }
            }
            if metrics.changed().await.is_err() {
                if self.stopping.load(Ordering::Relaxed) {
                    return;
                }
                fatal_core(&self.raft);
            }
        }
    }

    /// Hands leadership over and stops openraft; what is applied then is what
    /// the last checkpoint holds.
    pub async fn shutdown(&self, checkpoint: Checkpoint) {
        self.hand_over().await;
        self.stopping.store(true, Ordering::Relaxed);
        let _ = timeout(HANDOVER, self.raft.shutdown()).await;
        tokio::task::block_in_place(|| checkpoint.shutdown());
    }

    async fn hand_over(&self) {
        if !self.raft.is_leader() {
            return;
        }
        let best = {
            let m = self.metrics();
            let matched = m.replication.iter().flatten();
            matched
                .filter(|(id, _)| self.peers.view(**id).is_some_and(|p| p.up))
                .max_by_key(|(_, matched)| **matched)
                .map(|(id, _)| *id)
        };
        let Some(to) = best else {
            return;
        };
        // The other one need not wait until this lease is over.
        self.peers.hand_over(true);
        if self.raft.trigger().transfer_leader(to).await.is_err() {
            self.peers.hand_over(false);
            return;
        }
        let mut metrics = self.raft.server_metrics();
        let gone = async { while self.raft.is_leader() && metrics.changed().await.is_ok() {} };
        let _ = timeout(HANDOVER, gone).await;
    }

    /// A copy: openraft cannot publish while somebody looks at its own.
    pub fn metrics(&self) -> RaftMetrics<TypeConfig> {
        self.raft.metrics().borrow_watched().clone()
    }

    pub async fn show_summary(&self) -> CtlSummary {
        let reached = self
            .barrier
            .wait(Instant::now() + SHOW_TIMEOUT)
            .await
            .is_ok();
        let statfs = space::statfs(&self.store.meta().read(), InodeNo::ROOT).unwrap_or_default();
        let m = self.metrics();
        let conf = self.conf();
        CtlSummary {
            cluster: conf.cluster,
            node: conf.node,
            role: role(m.state),
            leader: m.current_leader,
            term: m.current_term,
            applied: *self.applied.borrow(),
            committed: m.local_committed.map_or(0, |id| id.index),
            quorum: reached || *self.quorum.borrow(),
            current: reached,
            age: self.age.get().map(|age| age.as_secs()),
            alarm: self.alarm(),
            bytes: statfs.bytes,
            bytes_free: statfs.bytes_free,
            inodes: statfs.inodes,
            inodes_free: statfs.inodes_free,
        }
    }

    /// Why nothing is applied here, if that is this node's disk.
    fn alarm(&self) -> Option<String> {
        let stands = self.store.log().stats().standing;
        let log = stands.then(|| "log: no room for a segment".to_string());
        self.store.alarm().or(log)
    }

    pub fn show_peers(&self) -> Vec<CtlPeer> {
        let m = self.metrics();
        let last = m.last_log_index.unwrap_or(0);
        let conf = self.conf();
        let this = conf.node;
        conf.peers
            .iter()
            .map(|peer| {
                let view = self.peers.view(peer.id);
                let matched = match &view {
                    _ if peer.id == this => Some(last),
                    Some(view) => Some(self.matched(&m.replication, peer.id, view.last_index)),
                    None => None,
                };
                CtlPeer {
                    id: peer.id,
                    addr: peer.addr.to_string(),
                    descr: peer.descr.clone(),
                    role: match m.current_leader {
                        _ if peer.id == this => role(m.state),
                        Some(leader) if leader == peer.id => Role::Leader,
                        Some(_) => Role::Follower,
                        None => Role::Unknown,
                    },
                    matched,
                    lag: matched.map(|matched| last.saturating_sub(matched)),
                    since: match &view {
                        Some(view) if peer.id != this => view.since.as_secs(),
                        _ => self.started.elapsed().as_secs(),
                    },
                    state: match &view {
                        _ if peer.id == this => PeerState::ThisNode,
                        Some(view) if view.needs_resync => PeerState::NeedsResync,
                        Some(view) if view.up => PeerState::Up,
                        _ => PeerState::Down,
                    },
                }
            })
            .collect()
    }

    /// What the leader knows of a peer's log, or else what the peer said.
    fn matched(
        &self,
        replication: &Option<std::collections::BTreeMap<NodeId, Option<raft::LogId>>>,
        id: NodeId,
        said: u64,
    ) -> u64 {
        match replication.as_ref().and_then(|r| r.get(&id)) {
            Some(matched) => matched.map_or(0, |id| id.index),
            None => said,
        }
    }

    /// What is at a path of this system, if that is at or beneath a mount point
    /// of dfsd.conf, or else at that path of the tree.
    pub fn resolve(&self, path: &Path) -> Result<InodeNo, ReadError> {
        if path.components().any(|c| c == Component::ParentDir) {
            return Err(FsError::Invalid.into());
        }
        let conf = self.conf();
        let above = conf.mounts.iter().filter(|m| path.starts_with(&m.point));
        let (root, path) = match above.max_by_key(|m| m.point.components().count()) {
            Some(mount) => (
                self.mounts.root(mount)?,
                path.strip_prefix(&mount.point).unwrap_or(path),
            ),
            None => (InodeNo::ROOT, path),
        };
        dirent::walk(&self.store.meta().read(), root, path.as_os_str().as_bytes())
    }

    pub fn show_mounts(&self) -> Vec<CtlMount> {
        self.mounts.show(&self.conf().mounts)
    }

    /// All locks of all nodes, as of what is applied here.
    pub fn show_locks(&self) -> Vec<CtlLock> {
        let meta = self.store.meta().read();
        let sessions = dedup::sessions(&meta).unwrap_or_default();
        let node = |id| sessions.iter().find(|(s, _)| *s == id).map(|(_, s)| s.node);
        let show = |ino: InodeNo, lock: &lock::Lock, held: bool| CtlLock {
            id: lock.index,
            ino,
            node: node(lock.owner.session).unwrap_or_default(),
            pid: lock.pid,
            range: lock.range,
            kind: lock.kind,
            held,
        };
        let all = lock::list(&meta).unwrap_or_default().into_iter();
        let shown = all.flat_map(|(ino, locks)| {
            let held = locks.held.iter().map(|lock| show(ino, lock, true));
            let waiting = locks.waiting.iter().map(|lock| show(ino, lock, false));
            held.chain(waiting).collect::<Vec<_>>()
        });
        shown.collect()
    }

    pub fn locks(&self) -> &Arc<Locks> {
        &self.mounts.locks
    }

    /// The same, as it is everywhere by now.
    pub async fn find(&self, path: &Path) -> Result<InodeNo, FsError> {
        self.barrier.wait(Instant::now() + SHOW_TIMEOUT).await?;
        match self.resolve(path) {
            Ok(ino) => Ok(ino),
            Err(ReadError::Fs(e)) => Err(e),
            Err(ReadError::Meta(e)) => fatal!(e, "store"),
        }
    }

    pub fn show_log(&self) -> CtlLog {
        let m = self.metrics();
        let log: &LogStore = self.store.log();
        let stats = log.stats();
        CtlLog {
            first: log.first_index(),
            last: m.last_log_index.unwrap_or(0),
            flushed: *log.flushed().borrow(),
            committed: m.local_committed.map_or(0, |id| id.index),
            applied: *self.applied.borrow(),
            checkpoint: self.store.checkpointed().index().unwrap_or(0),
            floor: space::floor(&self.store.meta().read()).unwrap_or(0),
            segments: stats.segments,
            spare: stats.spare,
            bytes: log.bytes(),
            limit: self.conf().log_limit,
            groups: stats.groups,
            flushes: stats.flushes,
            written: stats.written,
            checkpoints: self.store.checkpoint_count(),
        }
    }
}

async fn start_raft(
    conf: &Conf,
    store: &Arc<Store>,
    state_machine: StateMachine,
    peers: &Arc<Peers>,
) -> Raft {
    let config = match raft::checked(raft::config(&conf.cluster)) {
        Ok(config) => config,
        Err(e) => fatal!(e, "raft"),
    };
    let network = NetworkFactory {
        peers: peers.clone(),
    };
    let log: LogStore = store.log().clone();
    let raft = match Raft::new(conf.node, config, network, log, state_machine).await {
        Ok(raft) => raft,
        Err(e) => fatal!(e, "raft"),
    };
    raft.runtime_config().elect(false);
    // Every node begins with the same first entry, so that it does not matter
    // which of them is first, nor that all are.
    match raft.is_initialized().await {
        Ok(true) => {}
        Ok(false) => {
            if let Err(e) = raft.initialize(raft::members(&conf.peers)).await {
                log_warn!(e, "raft: initialize");
            }
        }
        Err(e) => fatal!(e, "raft"),
    }
    raft
}

/// openraft stopped by itself, which it does when the store has failed.
fn fatal_core(raft: &Raft) -> ! {
    let m = raft.metrics();
    let state = m.borrow_watched().running_state.clone();
    match state {
        Err(e) => fatal!(e, "raft"),
        Ok(()) => fatal!("stopped", "raft"),
    }
}

fn role(state: ServerState) -> Role {
    match state {
        ServerState::Leader => Role::Leader,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Learner => Role::Learner,
        ServerState::Shutdown => Role::Unknown,
    }
}

/// Whether the log knows what this node's disk can hold.
fn has_room(me: &Identity) -> bool {
    match space::has_reported(&me.store.meta().read(), me.node) {
        Ok(reported) => reported,
        Err(e) => fatal!(e, "store"),
    }
}

/// Finds out, again and again, whether a quorum answers, and so keeps the
/// lease.  The first time that one does, this node has applied all that was
/// acknowledged before it started, by itself or by others: it has recovered.
/// A new node has not before the log knows what its disk can hold: what is
/// reserved until then could have no room.
async fn probe(
    barrier: Barrier,
    peers: Arc<Peers>,
    age: Arc<Age>,
    lease: Arc<Lease>,
    quorum: watch::Sender<bool>,
    recovered: watch::Sender<bool>,
) {
    let mut last = Instant::now();
    loop {
        let sent = Sent::now();
        let asked = common::sys::clock::boottime();
        let answer = barrier.wait(Instant::now() + PROBE_INTERVAL).await;
        if answer.is_ok() {
            last = Instant::now();
            lease.renewed(sent);
            age.passed(asked.unwrap_or_default());
            if !*recovered.borrow() && has_room(&peers.me) {
                recovered.send_replace(true);
                log_info!("recovered");
            }
        }
        let lost = last.elapsed() > LOST_AFTER;
        quorum.send_if_modified(|q| std::mem::replace(q, !lost) == lost);
        let interval = match answer.is_ok() && !*recovered.borrow() {
            true => log_space::FIRST_INTERVAL,
            false => PROBE_INTERVAL / 4,
        };
        sleep(interval).await;
    }
}
