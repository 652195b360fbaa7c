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

//! The stream of proposals of this node's session.  raftd only.
//!
//! Whoever wants the tree changed queues an operation here.  It gets the next
//! seq, and one task sends the queue, in order, to whoever leads.  The result
//! comes from this node's own apply, never from the leader: an error on the
//! way to the leader says nothing about what the log has.
//!
//! ```text
//!   propose() --> pending --(one task, in order)--> leader's log
//!                    ^                                   |
//!                    +---- applied() <--- own apply <----+
//! ```
//!
//! An issued seq is never dropped.  When the leader changes, a connection
//! breaks or a gap is found, everything pending goes again with the seqs it
//! has; the state machine carries out the first of each.  What outlives its
//! deadline is sent again, if at all, as a Nop of the same seq, so that it
//! does not happen long after its caller was told otherwise.

use crate::fs::op::{Command, Op, Origin};
use crate::fs::{Outcome, Verdict};
use crate::fused::Attachment;
use crate::payload::Payload;
use crate::peer::frame::{Conn, PeerMsg, Proposal};
use crate::peer::Peers;
use crate::raft::{Raft, LEASE};
use crate::store::state_machine::Applied;
use bytes::Bytes;
use common::fs::{FsError, NodeId, SessionId, Time};
use common::{fatalx, log_debug, log_info};
use futures_util::FutureExt;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::async_runtime::Instant as _;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

/// Payload bytes of a node between the request and its apply.  Whatever else
/// is proposed waits behind them in the log, so this is what a stream of writes
/// costs everybody else: as little as keeps disks and links busy.
const WINDOW_BYTES: usize = 8 << 20;
/// Those of small payloads, which do not wait for room beside large ones.
const SMALL_BYTES: usize = 2 << 20;
const SMALL: usize = 16 << 10;
/// Operations of a node between the request and their apply.
const WINDOW_OPS: usize = 4096;
/// One batch on its way to the leader.
const BATCH_OPS: usize = 256;
const BATCH_BYTES: usize = 1 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const SEND_TIMEOUT: Duration = Duration::from_secs(3);
/// What nobody waits for waits for company so long, and for so much: one
/// flush on every node then serves a write and the attributes set after it.
const LAZY_MAX: Duration = Duration::from_millis(2);
const LAZY_OPS: usize = 32;
const LAZY_BYTES: usize = 64 << 10;
/// How often deadlines are looked at, and the session is asked for.
const TICK: Duration = Duration::from_millis(200);
/// Before a leader that was lost is tried again.
const RETRY: Duration = Duration::from_millis(20);
/// Without a result for so long everything is sent again: openraft drops what
/// it is given while it leads and has no lease.  Doubled each time, since what
/// it has taken and cannot commit it keeps.
const STALL_MIN: Duration = Duration::from_secs(1);
const STALL_MAX: Duration = Duration::from_secs(64);

/// Called once: when this node has applied the operation, with the index of
/// its entry; or when it is given up, with index 0.
pub type Done = Box<dyn FnOnce(u64, Outcome) + Send>;

/// By when an operation is given up, for whom it is, and whether that one
/// waits for it.
#[derive(Clone, Copy)]
pub struct How {
    pub deadline: Instant,
    pub from: Option<Attachment>,
    pub awaited: bool,
}

/// A share of the window, given back when its operation is resolved.
pub struct Room {
    _ops: OwnedSemaphorePermit,
    _bytes: Option<OwnedSemaphorePermit>,
}

struct Pending {
    op: Op,
    payload: Payload,
    deadline: Instant,
    done: Option<Done>,
    room: Option<Room>,
    /// The fused that asked.
    from: Option<Attachment>,
}

struct Window {
    session: Option<SessionId>,
    /// Seq of the first pending one; all below are resolved.
    first: u64,
    pending: VecDeque<Pending>,
    /// All up to this seq have been sent on the present route.
    sent: u64,
    /// Moves with each resolved one.
    resolved: u64,
    /// This node leads, and nothing is on another way.
    local: bool,
    /// The task has a batch in its hands.
    sending: bool,
    /// The seq that a Gap has asked for.
    gap: Option<u64>,
    /// Since when something waits that nobody waits for.
    lazy: Option<Instant>,
    /// Moves when `sent` goes back, so that a batch under way notices.
    rewinds: u64,
}

impl Window {
    /// The pending one that this verdict resolves.
    fn take(&mut self, seq: u64, verdict: &Verdict) -> Option<(Pending, Outcome)> {
        let outcome = match verdict {
            Verdict::Done(outcome) | Verdict::Duplicate(Some(outcome)) => outcome.clone(),
            Verdict::Duplicate(None) => return None,
            Verdict::Gap { expected } => {
                // Of a burst of them the first is enough.
                if self.gap.replace(*expected) != Some(*expected) {
                    self.sent = self.sent.min(expected.saturating_sub(1));
                    self.rewinds += 1;
                }
                return None;
            }
            Verdict::Retired => fatalx!("session retired: another raftd runs as this node"),
        };
        if seq != self.first {
            return None;
        }
        let pending = self.pending.pop_front()?;
        self.first += 1;
        self.sent = self.sent.max(seq);
        self.resolved += 1;
        Some((pending, outcome))
    }

    /// Everything pending is to be sent again.
    fn rewind(&mut self) {
        self.sent = self.first - 1;
        self.local = false;
        self.gap = None;
        self.rewinds += 1;
    }

    /// Whether what is not sent may wait for more of its kind.
    fn is_lazy(&self) -> bool {
        self.lazy.is_some_and(|since| since.elapsed() < LAZY_MAX)
    }

    /// Operations that are not sent, and their bytes, if these are few.
    fn unsent(&self) -> (usize, usize) {
        let skip = (self.sent + 1).saturating_sub(self.first) as usize;
        let unsent = self.pending.len().saturating_sub(skip);
        let bytes = self.pending.iter().rev().take(unsent.min(LAZY_OPS));
        (unsent, bytes.map(|p| p.payload.len as usize).sum())
    }

    fn last(&self) -> u64 {
        self.first + self.pending.len() as u64 - 1
    }

    /// The next operations to send.
    fn batch(&self) -> Vec<Proposal> {
        let Some(session) = self.session else {
            return Vec::new();
        };
        let skip = (self.sent + 1).saturating_sub(self.first) as usize;
        let mut bytes = 0;
        let mut batch = Vec::new();
        for (i, p) in self.pending.iter().enumerate().skip(skip).take(BATCH_OPS) {
            bytes += p.payload.len as usize;
            if bytes > BATCH_BYTES && !batch.is_empty() {
                break;
            }
            batch.push(Proposal {
                origin: Some(Origin {
                    session,
                    seq: self.first + i as u64,
                    acked: self.first - 1,
                }),
                op: p.op.clone(),
                payload: p.payload.clone(),
            });
        }
        batch
    }
}

/// The way to the leader: in which term, and who.
enum Route {
    None,
    Local { term: u64 },
    Remote { term: u64, conn: Box<Conn> },
}

pub struct Proposer {
    raft: Raft,
    peers: Arc<Peers>,
    nonce: u64,
    lease: Duration,
    window: Mutex<Window>,
    wake: Notify,
    ops: Arc<Semaphore>,
    /// In units of 1 KiB.
    bytes: Arc<Semaphore>,
    small_bytes: Arc<Semaphore>,
}

/// Kibibytes, rounded up, as the semaphore counts.
fn kib(bytes: usize) -> u32 {
    bytes.div_ceil(1024) as u32
}

impl Proposer {
    /// `nonce` tells this run of raftd from all others of the node.
    pub fn new(raft: Raft, peers: Arc<Peers>, nonce: u64, lease: Duration) -> Arc<Proposer> {
        Arc::new(Proposer {
            raft,
            peers,
            nonce,
            lease,
            window: Mutex::new(Window {
                session: None,
                first: 1,
                pending: VecDeque::new(),
                sent: 0,
                resolved: 0,
                local: false,
                sending: false,
                gap: None,
                lazy: None,
                rewinds: 0,
            }),
            wake: Notify::new(),
            ops: Arc::new(Semaphore::new(WINDOW_OPS)),
            bytes: Arc::new(Semaphore::new(WINDOW_BYTES >> 10)),
            small_bytes: Arc::new(Semaphore::new(SMALL_BYTES >> 10)),
        })
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn session(&self) -> Option<SessionId> {
        self.window().session
    }

    fn bytes(&self, payload: usize) -> Arc<Semaphore> {
        match payload <= SMALL {
            true => self.small_bytes.clone(),
            false => self.bytes.clone(),
        }
    }

    /// Waits for room in the window; back-pressure is this wait.
    pub async fn room(&self, bytes: usize) -> Room {
        let ops = self.ops.clone().acquire_owned().await;
        let bytes = match bytes {
            0 => None,
            n => self.bytes(n).acquire_many_owned(kib(n)).await.ok(),
        };
        match ops {
            Ok(ops) => Room {
                _ops: ops,
                _bytes: bytes,
            },
            Err(e) => fatalx!("proposal window: {e}"),
        }
    }

    /// The same, if there is room at once.
    pub fn try_room(&self, bytes: usize) -> Option<Room> {
        let ops = self.ops.clone().try_acquire_owned().ok()?;
        let bytes = match bytes {
            0 => None,
            n => Some(self.bytes(n).try_acquire_many_owned(kib(n)).ok()?),
        };
        Some(Room {
            _ops: ops,
            _bytes: bytes,
        })
    }

    /// Queues an operation behind all queued before.
    pub fn propose(&self, op: Op, bytes: Bytes, how: How, room: Room, done: Done) {
        let payload = match bytes.is_empty() {
            true => Payload::none(),
            false => Payload::new(bytes),
        };
        let mut window = self.window();
        window.pending.push_back(Pending {
            op,
            payload,
            deadline: how.deadline,
            done: Some(done),
            room: Some(room),
            from: how.from,
        });
        let (ops, bytes) = window.unsent();
        if !how.awaited && ops < LAZY_OPS && bytes < LAZY_BYTES {
            if window.lazy.is_none() {
                window.lazy = Some(Instant::now());
                // It looks after the delay.
                self.wake.notify_one();
            }
            return;
        }
        self.send_now(&mut window);
    }

    /// Somebody waits for what was queued.
    pub fn hurry(&self) {
        let mut window = self.window();
        if window.lazy.is_some() {
            self.send_now(&mut window);
        }
    }

    /// On the leader what is not sent goes to openraft without a switch to the
    /// task, unless that is in the middle of a batch.  The lock keeps the
    /// order; if this node leads no longer, the task will see that, and rewind.
    fn send_now(&self, window: &mut Window) {
        window.lazy = None;
        let batch = match window.local && !window.sending {
            true => window.batch(),
            false => Vec::new(),
        };
        let last = batch.last().and_then(|p| p.origin).map(|o| o.seq);
        match last {
            Some(seq) if take(&self.raft, batch).now_or_never() == Some(true) => {
                window.sent = seq;
                if seq < window.last() {
                    self.wake.notify_one();
                }
            }
            _ => self.wake.notify_one(),
        }
    }

    /// The fused of this node that asked for the entry and waits for it.
    pub fn source(&self, applied: &Applied) -> Option<Attachment> {
        let origin = applied.origin?;
        let window = self.window();
        if window.session != Some(origin.session) || origin.seq != window.first {
            return None;
        }
        let pending = window.pending.front()?;
        pending.done.as_ref().and(pending.from)
    }

    /// What the state machine did with an entry; called in log order.
    pub fn applied(&self, applied: &Applied) {
        if applied.opened == Some((self.peers.me.node, self.nonce)) {
            self.opened(SessionId(applied.index));
        }
        let Some(origin) = applied.origin else {
            return;
        };
        let resolved = {
            let mut window = self.window();
            if window.session != Some(origin.session) {
                return;
            }
            window.take(origin.seq, &applied.verdict)
        };
        match resolved {
            Some((mut pending, outcome)) => {
                if let Some(done) = pending.done.take() {
                    done(applied.index, outcome);
                }
            }
            None => self.wake.notify_one(),
        }
    }

    fn opened(&self, session: SessionId) {
        let mut window = self.window();
        if window.session.is_none() {
            window.session = Some(session);
            log_info!("session {session} opened");
            drop(window);
            self.wake.notify_one();
        }
    }

    /// The task that sends; runs for ever.
    pub async fn run(self: Arc<Self>) {
        let mut metrics = self.raft.server_metrics();
        let mut route = Route::None;
        let mut stall = Stall::default();
        let mut asked = None;
        loop {
            self.expire();
            let (leader, term) = {
                let m = metrics.borrow_watched();
                (m.current_leader, m.vote.leader_id.term)
            };
            if stall.over(&self.window()) {
                route = Route::None;
            }
            route = self.follow(route, leader, term).await;
            match self.send(&mut route, &mut asked).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(e) => {
                    log_debug!("to the leader: {e}");
                    self.window().rewind();
                    route = Route::None;
                    sleep(RETRY).await;
                }
            }
            tokio::select! {
                _ = self.wake.notified() => {}
                changed = metrics.changed() => if changed.is_err() {
                    // openraft has stopped, and so does raftd.
                    return;
                },
                _ = refused(&mut route) => {
                    route = Route::None;
                    sleep(RETRY).await;
                }
                _ = sleep(self.pause()) => {}
            }
        }
    }

    /// Until the task must look again.
    fn pause(&self) -> Duration {
        let lazy = self.window().lazy;
        lazy.map_or(TICK, |since| LAZY_MAX.saturating_sub(since.elapsed()))
    }

    /// Gives up what has outlived its deadline; its seq stays.
    fn expire(&self) {
        let now = Instant::now();
        let mut expired = Vec::new();
        for p in self.window().pending.iter_mut() {
            if p.done.is_some() && p.deadline <= now {
                p.op = Op::Nop;
                p.payload = Payload::none();
                p.room = None;
                expired.extend(p.done.take());
            }
        }
        for done in expired {
            done(0, Err(FsError::TimedOut));
        }
    }

    /// Keeps to the leader of the term, or goes over to a new one, who is
    /// then sent everything.
    async fn follow(&self, route: Route, leader: Option<NodeId>, now: u64) -> Route {
        let me = self.peers.me.node;
        match (leader, route) {
            (None, _) => {
                self.window().rewind();
                Route::None
            }
            (Some(to), Route::Local { term }) if to == me && term == now => Route::Local { term },
            (Some(to), Route::Remote { term, conn }) if to == conn.peer && term == now => {
                Route::Remote { term, conn }
            }
            (Some(to), _) => {
                self.window().rewind();
                if to == me {
                    self.window().local = true;
                    return Route::Local { term: now };
                }
                match self.peers.connect(to, CONNECT_TIMEOUT).await {
                    Ok(conn) => Route::Remote {
                        term: now,
                        conn: Box::new(conn),
                    },
                    Err(e) => {
                        log_debug!("leader {to}: {e}");
                        Route::None
                    }
                }
            }
        }
    }

    /// Sends one batch; true if there may be more.
    async fn send(&self, route: &mut Route, asked: &mut Option<Instant>) -> io::Result<bool> {
        if matches!(route, Route::None) {
            return Ok(false);
        }
        let (mut batch, rewinds) = {
            let mut window = self.window();
            if window.is_lazy() {
                return Ok(false);
            }
            window.lazy = None;
            let batch = window.batch();
            window.sending = !batch.is_empty();
            (batch, window.rewinds)
        };
        let _sending = Sending(self);
        let mut last = batch.last().and_then(|p| p.origin).map(|o| o.seq);
        if self.session().is_none() {
            if asked.is_some_and(|at: Instant| at.elapsed() < 5 * TICK) {
                return Ok(false);
            }
            *asked = Some(Instant::now());
            batch = vec![self.open_session()];
            last = None;
        }
        if batch.is_empty() {
            return Ok(false);
        }
        match route {
            Route::None => return Ok(false),
            Route::Local { .. } => {
                if !take(&self.raft, batch).await {
                    return Err(io::Error::other("no longer the leader"));
                }
            }
            Route::Remote { conn, .. } => {
                let write = conn.writer.write(PeerMsg::Propose(batch));
                timeout(SEND_TIMEOUT, write)
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
            }
        }
        if let Some(seq) = last {
            let mut window = self.window();
            if window.rewinds == rewinds {
                window.sent = window.sent.max(seq);
            }
        }
        Ok(last.is_some())
    }

    fn open_session(&self) -> Proposal {
        Proposal {
            origin: None,
            op: Op::OpenSession {
                node: self.peers.me.node,
                nonce: self.nonce,
                lease: self.lease,
            },
            payload: Payload::none(),
        }
    }
}

/// Waits until the leader says that it is not, or the connection ends.
async fn refused(route: &mut Route) {
    match route {
        Route::Remote { conn, .. } => {
            let _ = conn.reader.read().await;
        }
        _ => std::future::pending().await,
    }
}

/// While it lives, the task has a batch in its hands.
struct Sending<'a>(&'a Proposer);

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.window().sending = false;
    }
}

/// Since when nothing has been resolved.
struct Stall {
    resolved: u64,
    since: Instant,
    limit: Duration,
}

impl Default for Stall {
    fn default() -> Stall {
        Stall {
            resolved: 0,
            since: Instant::now(),
            limit: STALL_MIN,
        }
    }
}

impl Stall {
    fn over(&mut self, window: &Window) -> bool {
        if window.resolved != self.resolved || window.pending.is_empty() {
            *self = Stall {
                resolved: window.resolved,
                ..Stall::default()
            };
        } else if self.since.elapsed() > self.limit {
            self.since = Instant::now();
            self.limit = (self.limit * 2).min(STALL_MAX);
            return true;
        }
        false
    }
}

/// The leader's part: stamps proposals with its clock and logs them in their
/// order.  False if this node does not lead; what was logged before that was
/// noticed does no harm, since it will be sent again under the same seqs.
pub async fn take(raft: &Raft, batch: Vec<Proposal>) -> bool {
    if !may_write(raft) {
        return false;
    }
    for p in batch {
        let command = Command {
            origin: p.origin,
            time: now(),
            op: p.op,
            payload: p.payload,
        };
        if raft.client_write_ff(command, None).await.is_err() {
            return false;
        }
    }
    true
}

/// Whether openraft would take a proposal.  It drops one that it does not
/// take, and tells nobody: a leader whose lease has run out, as that of a new
/// one before its first answer has, takes none.
fn may_write(raft: &Raft) -> bool {
    let m = raft.metrics();
    let m = m.borrow_watched();
    let alone = m.membership_config.voter_ids().count() == 1;
    m.state.is_leader() && (alone || m.last_quorum_acked.is_some_and(|at| at.elapsed() < LEASE))
}

/// The wall clock; only a leader's ever enters the log.
pub fn now() -> Time {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Time {
        sec: since.as_secs() as i64,
        nsec: since.subsec_nanos(),
    }
}
