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

//! The read barrier: a point in the log such that whoever has applied it sees
//! all that any node was told is done.  raftd only.
//!
//! The leader knows the point while its lease holds: a node answers its callers
//! by what it has applied, and of that the leader has told it before.  So it is
//! enough to remember the highest index that the leader has applied itself, or
//! told any peer to be committed.  A follower asks the leader, with one question
//! in flight that serves all who came before it was sent.

use crate::peer::frame::{Conn, PeerMsg};
use crate::peer::Peers;
use crate::raft::{Raft, LEASE};
use common::fs::FsError;
use common::{log_debug, sys};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::async_runtime::Instant as _;
use openraft::ReadPolicy;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{timeout, timeout_at};

const ASK_TIMEOUT: Duration = Duration::from_millis(500);
/// Before a question that failed is asked again.
const RETRY: Duration = Duration::from_millis(50);
/// So long before its end a lease is not trusted without openraft's own word:
/// it counts from when a request was made, which may be some time before that
/// was sent.
const LEASE_SLACK: Duration = Duration::from_millis(100);
/// A suspend shorter than this cannot have cost the lease.
const SUSPEND_MIN: Duration = Duration::from_millis(50);

type Waiter = oneshot::Sender<u64>;

#[derive(Clone)]
pub struct Barrier {
    raft: Raft,
    peers: Arc<Peers>,
    /// Highest index applied on this node.
    applied: watch::Receiver<u64>,
    questions: mpsc::UnboundedSender<Waiter>,
}

impl Barrier {
    /// Starts the task that asks.
    pub fn start(raft: Raft, peers: Arc<Peers>, applied: watch::Receiver<u64>) -> Barrier {
        let (questions, waiters) = mpsc::unbounded_channel();
        tokio::spawn(ask(raft.clone(), peers.clone(), waiters));
        Barrier {
            raft,
            peers,
            applied,
            questions,
        }
    }

    /// Waits until this node has applied all that was acknowledged anywhere
    /// before the call.
    pub async fn wait(&self, deadline: Instant) -> Result<(), FsError> {
        let index = match self.raft.is_leader() {
            true => read_index(&self.raft, &self.peers).await,
            false => None,
        };
        let index = match index {
            Some(index) => index,
            None => self.ask(deadline).await?,
        };
        self.applied(index, deadline).await
    }

    /// Waits until this node has applied `index`.
    pub async fn applied(&self, index: u64, deadline: Instant) -> Result<(), FsError> {
        let mut applied = self.applied.clone();
        let wait = applied.wait_for(|&at| at >= index);
        let waited = timeout_at(deadline.into(), wait).await;
        match waited.map(|got| got.is_ok()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(FsError::Io),
            Err(_) => Err(FsError::TimedOut),
        }
    }

    async fn ask(&self, deadline: Instant) -> Result<u64, FsError> {
        let (tx, rx) = oneshot::channel();
        if self.questions.send(tx).is_err() {
            return Err(FsError::Io);
        }
        match timeout_at(deadline.into(), rx).await {
            Ok(Ok(index)) => Ok(index),
            Ok(Err(_)) => Err(FsError::Io),
            Err(_) => Err(FsError::NoQuorum),
        }
    }
}

/// The task: one question in flight for all who wait.
async fn ask(raft: Raft, peers: Arc<Peers>, mut waiters: mpsc::UnboundedReceiver<Waiter>) {
    let mut conn = None;
    while let Some(first) = waiters.recv().await {
        let mut all = vec![first];
        while let Ok(more) = waiters.try_recv() {
            all.push(more);
        }
        let index = loop {
            all.retain(|w| !w.is_closed());
            if all.is_empty() {
                break None;
            }
            match question(&raft, &peers, &mut conn).await {
                Ok(Some(index)) => break Some(index),
                Ok(None) => {}
                Err(e) => {
                    conn = None;
                    log_debug!("read barrier: {e}");
                }
            }
            tokio::time::sleep(RETRY).await;
        };
        for waiter in all {
            // A waiter without an index has gone already.
            index.map(|index| waiter.send(index));
        }
    }
}

/// Asks whoever leads; None when nobody can tell now.
async fn question(raft: &Raft, peers: &Peers, conn: &mut Option<Conn>) -> io::Result<Option<u64>> {
    let leader = raft.server_metrics().borrow_watched().current_leader;
    let Some(leader) = leader else {
        return Ok(None);
    };
    if leader == peers.me.node {
        return Ok(read_index(raft, peers).await);
    }
    let mut to = match conn.take() {
        Some(to) if to.peer == leader => to,
        _ => peers.connect(leader, ASK_TIMEOUT).await?,
    };
    let exchange = async {
        to.writer.write(PeerMsg::ReadIndex).await?;
        to.reader.read().await
    };
    let rep = timeout(ASK_TIMEOUT, exchange)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    match rep {
        Some(PeerMsg::ReadIndexRep(index)) => {
            *conn = Some(to);
            Ok(index)
        }
        Some(_) => Err(io::ErrorKind::InvalidData.into()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// On the leader: up to where a read that comes now must wait; None when it
/// does not lead, or cannot prove that it does.
pub async fn read_index(raft: &Raft, peers: &Peers) -> Option<u64> {
    let suspended_before = suspended();
    if !suspended_before && is_leased(raft) && !peers.is_handing_over() {
        return Some(peers.answered());
    }
    let policy = match suspended_before {
        false => ReadPolicy::LeaseRead,
        true => ReadPolicy::ReadIndex,
    };
    let leased = matches!(policy, ReadPolicy::LeaseRead);
    let answer = timeout(ASK_TIMEOUT, raft.get_read_log_id(policy)).await;
    match answer {
        Ok(Ok(_)) if leased && suspended() => None,
        Ok(Ok((id, _))) => Some(id.index()),
        _ => None,
    }
}

/// Whether this node leads, for some time yet, and has applied all that was
/// committed before it began to.
fn is_leased(raft: &Raft) -> bool {
    let m = raft.metrics();
    let m = m.borrow_watched();
    let applied = m.last_applied.map(|id| id.leader_id.term);
    let acked = m.last_quorum_acked.map(|at| at.elapsed());
    m.state.is_leader()
        && applied == Some(m.current_term)
        && acked.is_some_and(|ago| ago < LEASE - LEASE_SLACK)
}

/// Whether the machine slept less than a lease ago.  openraft measures its
/// lease on a clock that stands still meanwhile, so that a leader which woke
/// up would trust one that has long run out.
fn suspended() -> bool {
    static CLOCK: Mutex<Option<Clock>> = Mutex::new(None);
    let Ok(boottime) = sys::clock::boottime() else {
        return true;
    };
    let now = Instant::now();
    let mut clock = CLOCK.lock().unwrap_or_else(|e| e.into_inner());
    let clock = clock.get_or_insert(Clock {
        awake: now,
        all: boottime,
        trusted: now,
    });
    let slept = boottime
        .saturating_sub(clock.all)
        .saturating_sub(now.saturating_duration_since(clock.awake));
    if slept > SUSPEND_MIN {
        *clock = Clock {
            awake: now,
            all: boottime,
            trusted: now + LEASE,
        };
    }
    now < clock.trusted
}

/// Two clocks at one moment, and from when on a lease can be trusted.
struct Clock {
    awake: Instant,
    all: Duration,
    trusted: Instant,
}
