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

//! The leases on which sessions hold their locks, from both ends.  raftd only.
//! Nothing of it is in the log but, by ExpireLocks, the end of one.
//!
//! A node renews its session's lease by the question for the read barrier,
//! which it asks several times a second anyway: from when it sent one that was
//! answered, and once it has applied what the answer names, it may count on its
//! locks for the length of its lease, which its session's record tells every
//! leader.  The leader takes the locks away when it was not asked for that long
//! and SLACK.  A new leader, and one that did not run for some time, gives
//! everybody a full lease first.
//!
//! From when the leader has decided to take a session's locks away until this
//! is applied it answers that node nothing: the lease could be renewed by an
//! answer that does not cover it.

use crate::fs::dedup::{self, Session};
use crate::fs::lock;
use crate::fs::op::Op;
use crate::payload::Payload;
use crate::peer::frame::Proposal;
use crate::peer::Peers;
use crate::propose;
use crate::raft::Raft;
use crate::store::Store;
use common::fs::{NodeId, SessionId};
use common::{log_warnx, sys};
use openraft::async_runtime::watch::WatchReceiver;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::sleep;

/// The leader is in no hurry: clocks need not run at the same speed.  A tenth of
/// the lease, which is more than what clocks are slewed by, but at least this.
const SLACK: Duration = Duration::from_secs(1);
/// How often the leader looks.
const TICK: Duration = Duration::from_millis(500);
/// A leader that looked so late has heard nobody for that time, whoever spoke.
const STALLED: Duration = Duration::from_secs(3);
/// What was proposed is applied by then, or it is proposed again.
const EXPIRE_AGAIN: Duration = Duration::from_secs(5);

/// The clock of leases; it goes on while the machine is suspended.  Without it
/// nothing can be held.
fn now() -> Duration {
    sys::clock::boottime().unwrap_or(Duration::MAX)
}

/// The lease of this node's session.
pub struct Lease {
    length: Duration,
    /// Until when, in milliseconds of that clock.
    until: AtomicU64,
}

/// When a renewal was sent.
#[derive(Clone, Copy)]
pub struct Sent(Duration);

impl Sent {
    pub fn now() -> Sent {
        Sent(now())
    }
}

impl Lease {
    pub fn new(length: Duration) -> Lease {
        Lease {
            length,
            until: AtomicU64::new(0),
        }
    }

    pub fn renewed(&self, sent: Sent) {
        let until = sent.0.saturating_add(self.length).as_millis() as u64;
        if sent.0 < Duration::MAX {
            self.until.fetch_max(until, Ordering::SeqCst);
        }
    }

    /// How long it lasts; zero when it has run out.
    pub fn left(&self) -> Duration {
        Duration::from_millis(self.until.load(Ordering::SeqCst)).saturating_sub(now())
    }

    pub fn holds(&self) -> bool {
        !self.left().is_zero()
    }
}

/// When this node as the leader has last heard of whom.
#[derive(Default)]
pub struct Heard {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    nodes: HashMap<NodeId, Duration>,
    /// Whose locks are being taken away, and since when.
    expiring: HashMap<NodeId, Duration>,
    /// Since when it leads, in which term, and when it last looked.
    leads: Option<(u64, Duration)>,
    looked: Duration,
}

impl Heard {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The node asks; whether it may be answered.
    pub fn from(&self, node: NodeId) -> bool {
        let mut table = self.table();
        table.nodes.insert(node, now());
        !table.expiring.contains_key(&node)
    }
}

impl Table {
    /// Begins anew with a new term, and after a gap.
    fn look(&mut self, term: u64, now: Duration) -> Duration {
        let stalled = now.saturating_sub(self.looked) > STALLED;
        self.looked = now;
        match self.leads {
            Some((of, since)) if of == term && !stalled => since,
            led => {
                // One that is under way in this term still takes locks away.
                if led.is_none_or(|(of, _)| of != term) {
                    self.expiring.clear();
                }
                self.leads = Some((term, now));
                now
            }
        }
    }

    /// Whether the node was not heard of for too long, and so loses its locks
    /// now.
    fn is_silent(&mut self, session: &Session, since: Duration, now: Duration) -> bool {
        let node = session.node;
        let heard = self.nodes.get(&node).copied().unwrap_or_default();
        if now.saturating_sub(heard.max(since))
            <= session.lease.saturating_add(SLACK.max(session.lease / 10))
        {
            return false;
        }
        let begun = self.expiring.get(&node);
        let again = begun.is_none_or(|at| now.saturating_sub(*at) > EXPIRE_AGAIN);
        if again {
            self.expiring.insert(node, now);
        }
        again
    }
}

/// The task that takes away the locks of sessions of which the leader does not
/// hear any more.
pub async fn expire(raft: Raft, peers: Arc<Peers>, store: Arc<Store>) {
    loop {
        sleep(TICK).await;
        for (node, session) in silent(&raft, &peers, &store) {
            let op = Op::ExpireLocks { session };
            let payload = Payload::none();
            let origin = None;
            let batch = vec![Proposal {
                origin,
                op,
                payload,
            }];
            if propose::take(&raft, batch).await {
                log_warnx!("node {node}: not heard of, its locks are taken away");
            }
        }
    }
}

fn silent(raft: &Raft, peers: &Peers, store: &Store) -> Vec<(NodeId, SessionId)> {
    let term = {
        let m = raft.metrics();
        let m = m.borrow_watched();
        m.state.is_leader().then_some(m.current_term)
    };
    let mut table = peers.heard.table();
    let Some(term) = term else {
        table.leads = None;
        table.expiring.clear();
        return Vec::new();
    };
    let now = now();
    let since = table.look(term, now);
    let meta = store.meta().read();
    let sessions = dedup::sessions(&meta).unwrap_or_default();
    let mut silent = Vec::new();
    for (session, record) in sessions {
        if record.node == peers.me.node {
            continue;
        }
        if !lock::has_any(&meta, session).unwrap_or(false) {
            table.expiring.remove(&record.node);
        } else if table.is_silent(&record, since, now) {
            silent.push((record.node, session));
        }
    }
    silent
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn counts_from_the_sending() {
        let lease = Lease::new(10 * S);
        assert!(!lease.holds());
        let sent = Sent::now();
        lease.renewed(sent);
        assert!(lease.holds() && lease.left() <= 10 * S);
        // An answer that took longer than another one renews nothing.
        lease.renewed(Sent(sent.0.saturating_sub(10 * S)));
        assert!(lease.holds());
        let old = Lease::new(10 * S);
        old.renewed(Sent(now().saturating_sub(10 * S)));
        assert!(!old.holds());
    }

    fn session(node: NodeId, lease: Duration) -> Session {
        Session {
            node,
            nonce: 1,
            lease,
            next: 1,
            acked: 0,
            fenced: false,
        }
    }

    #[test]
    fn each_has_its_own_lease() {
        let [short, long, ever] = [5 * S, 100 * S, Duration::MAX];
        let sessions = [(2, short), (3, long), (4, ever)];
        let [short, long, ever] = sessions.map(|(node, lease)| session(NodeId(node), lease));
        let mut table = Table::default();
        let since = table.look(1, Duration::ZERO);
        assert!(!table.is_silent(&short, since, 6 * S));
        assert!(table.is_silent(&short, since, 7 * S));
        assert!(!table.is_silent(&long, since, 110 * S), "clocks differ");
        assert!(table.is_silent(&long, since, 111 * S));
        assert!(!table.is_silent(&ever, since, Duration::MAX));
    }

    #[test]
    fn the_leader_is_patient() {
        let node = NodeId(2);
        let ten = &session(node, 10 * S);
        let mut table = Table::default();
        let since = table.look(1, 100 * S);
        assert!(!table.is_silent(ten, since, 111 * S), "a full lease first");
        assert!(table.is_silent(ten, since, 112 * S));
        assert!(!table.is_silent(ten, since, 113 * S), "it has begun");
        assert!(table.is_silent(ten, since, 118 * S), "it was lost");
        table.nodes.insert(node, 118 * S);
        assert!(!table.is_silent(ten, since, 129 * S));

        // A look each second, then none for some time.
        for at in 118..130 {
            assert_eq!(table.look(1, at * S), 118 * S);
        }
        assert_eq!(table.look(1, 140 * S), 140 * S);
        assert!(!table.is_silent(ten, 140 * S, 141 * S));
        assert!(table.expiring.contains_key(&node), "it is still under way");
        assert_eq!(table.look(2, 141 * S), 141 * S, "another term");
        assert!(table.expiring.is_empty());
    }
}
