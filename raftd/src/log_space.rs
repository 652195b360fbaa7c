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

//! Room on the disks: what this node's can hold, as the log must know it, and
//! how the log itself is freed.  raftd only.
//!
//! The log up to an index may go when a checkpoint of this node has it, and
//! no peer needs it.  The second is the floor, which the leader finds and
//! puts into the log, so that whoever leads next has not freed more.  Peers tell
//! it to each other as well, and what they have applied: the disk of a node that
//! was away need not hold all that it has missed before it comes to that entry.
//! A dead peer holds the floor until the log has reached the limit of
//! dfsd.conf; then it is given up, and needs a resync.

use crate::engine::Engine;
use crate::fs::op::Op;
use crate::fs::space::{self, Capacity};
use crate::propose::{How, Proposer};
use crate::raft::LogId;
use bytes::Bytes;
use common::fs::{NodeId, BLOCK};
use common::{log_debug, log_warn};
use openraft::async_runtime::watch::WatchReceiver;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

const CAPACITY_INTERVAL: Duration = Duration::from_secs(1);
/// A new node's users wait until it has said what its disk can hold.
pub const FIRST_INTERVAL: Duration = Duration::from_millis(20);
/// A change of the room smaller than this is not worth an entry, nor one
/// smaller than a fiftieth of it and an eighth of what is left.
const CAPACITY_STEP: u64 = 4 << 20;
const FLOOR_INTERVAL: Duration = Duration::from_millis(500);
/// How much log makes a new floor worth an entry.
const FLOOR_ENTRIES: u64 = 4096;
const FLOOR_BYTES: u64 = 64 << 20;
const FLOOR_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer is not given up for a moment's silence, since that is for good.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);
/// For openraft to take notice of a checkpoint, unless the log stands still.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(10);
/// Proposals of raftd itself may wait as long as it takes.
const FOREVER: Duration = Duration::from_secs(365 * 86400);

async fn propose(proposer: &Proposer, op: Op, limit: Duration) {
    let room = proposer.room(0).await;
    let how = How {
        deadline: Instant::now() + limit,
        from: None,
        awaited: false,
    };
    proposer.propose(op, Bytes::new(), how, room, Box::new(|_, _| {}));
}

/// Tells the log what this node's disk can hold for the tree: what the tree
/// has of it, and what is left.
pub async fn report_capacity(engine: Arc<Engine>, proposer: Arc<Proposer>) {
    let mut told = None;
    loop {
        let session = proposer.session();
        if session.is_some() {
            let reserve = engine.conf().reserve;
            match capacity(&engine).await {
                Some((now, free)) if worth_telling(told, now, free, reserve) => {
                    told = Some(now);
                    let Capacity { bytes, inodes } = now;
                    let node = engine.peers().me.node;
                    let op = Op::Capacity {
                        node,
                        bytes,
                        inodes,
                    };
                    propose(&proposer, op, FOREVER).await;
                }
                _ => {}
            }
        }
        let interval = match session {
            None => FIRST_INTERVAL,
            Some(_) => CAPACITY_INTERVAL,
        };
        sleep(interval).await;
    }
}

/// What this node's disk can hold, and what of that is free.
async fn capacity(engine: &Engine) -> Option<(Capacity, Capacity)> {
    let store = &engine.store;
    // What an entry takes is charged before the disk has it.
    let _between = store.between_entries().await?;
    let room = match store.data().room() {
        Ok(room) => room,
        Err(e) => {
            log_warn!(e, "statvfs");
            return None;
        }
    };
    let map = match store.meta().room() {
        Ok(map) => map,
        Err(e) => {
            log_warn!(e, "metadata");
            return None;
        }
    };
    let taken = space::load(&store.meta().read()).ok()?;
    let reserve = engine.conf().reserve;
    let kept = reserve.saturating_add(room.short);
    // A disk that is full of contents still has room for names: half of the
    // reserve is theirs.
    let grows = map.growth.min(room.bytes.saturating_sub(reserve / 2));
    let metadata = map.free.saturating_add(grows).saturating_sub(map.needed);
    let free = Capacity {
        bytes: room.bytes.saturating_sub(kept),
        inodes: room.inodes.min(metadata / BLOCK),
    };
    // What is gone of the reserve is restored before anything else is taken.
    let bytes = taken.taken().saturating_mul(BLOCK);
    let bytes = bytes.saturating_add(room.bytes).saturating_sub(kept);
    let inodes = taken.records().saturating_add(free.inodes);
    Some((Capacity { bytes, inodes }, free))
}

/// The less is left, the more exact it has to be.
fn worth_telling(told: Option<Capacity>, now: Capacity, free: Capacity, reserve: u64) -> bool {
    let moved = |told: u64, now: u64, free: u64, step: u64| {
        told.abs_diff(now) > step.max((told / 50).min(free / 8))
    };
    match told {
        None => true,
        Some(told) => {
            // Beyond the reserve one operation could take what is not there.
            told.bytes > now.bytes.saturating_add(reserve / 2)
                || moved(told.bytes, now.bytes, free.bytes, CAPACITY_STEP)
                || moved(told.inodes, now.inodes, free.inodes, 1024)
        }
    }
}

/// The leader's task: moves the floor behind the peers.
pub async fn move_floor(engine: Arc<Engine>, proposer: Arc<Proposer>) {
    let mut written = engine.store.log().stats().written;
    let mut proposed = 0;
    loop {
        sleep(FLOOR_INTERVAL).await;
        let Some(floor) = floor(&engine) else {
            continue;
        };
        let now = space::floor(&engine.store.meta().read()).unwrap_or(u64::MAX);
        let now = now.max(proposed);
        let bytes = engine.store.log().stats().written;
        let enough = floor >= now.saturating_add(FLOOR_ENTRIES)
            || (floor > now && bytes.saturating_sub(written) >= FLOOR_BYTES);
        if enough {
            written = bytes;
            log_debug!("floor {floor}");
            proposed = floor;
            // Not later: what it was judged by may have changed.
            propose(&proposer, Op::Floor { index: floor }, FLOOR_TIMEOUT).await;
        }
    }
}

/// Up to where no peer needs the log; None when this node does not lead, or
/// hears of too few to judge.
fn floor(engine: &Engine) -> Option<u64> {
    let m = engine.metrics();
    let replication = m.replication?;
    let applied = m.last_applied.map_or(0, |id| id.index);
    let peers = engine.peers();
    let is_up = |id: &NodeId| *id == peers.me.node || peers.view(*id).is_some_and(|p| p.up);
    if 2 * replication.keys().filter(|id| is_up(id)).count() <= replication.len() {
        return None;
    }
    let full = engine.store.log().bytes() > engine.conf().log_limit;
    let first = engine.store.log().first_index();
    let needed = |(id, matched): (&NodeId, &Option<LogId>)| {
        let index = matched.map_or(0, |id| id.index);
        let view = peers.view(*id).filter(|_| *id != peers.me.node);
        match view {
            Some(view) if view.needs_resync && index + 1 < first => None,
            Some(view) if full && !view.up && view.since > GIVE_UP_AFTER => {
                peers.gave_up(*id);
                None
            }
            _ => Some(index),
        }
    };
    let lowest = replication.iter().filter_map(needed).min();
    Some(lowest.unwrap_or(applied).min(applied))
}

/// Up to where nobody needs the log, as far as this node knows: what is agreed
/// says so, here or where a peer is, or all have told that they have applied
/// it.  The last needs no agreement and no leader, so that it counts also when
/// no disk has room for an entry.
fn known_floor(engine: &Engine) -> u64 {
    let (peers, m) = (engine.peers(), engine.metrics());
    let agreed = space::floor(&engine.store.meta().read()).unwrap_or(0);
    let voters = m.membership_config.voter_ids();
    let everywhere = voters.map(|id| peers.applied(id)).min();
    agreed.max(peers.floor()).max(everywhere.unwrap_or(0))
}

/// Frees the log behind checkpoint and floor.
pub async fn purge(engine: Arc<Engine>) {
    let mut checkpoints = engine.store.checkpoints();
    let mut purged = 0;
    loop {
        let _ = timeout(FLOOR_INTERVAL, checkpoints.changed()).await;
        let checkpoint = checkpoints.borrow_and_update().index().unwrap_or(0);
        let upto = checkpoint.min(known_floor(&engine));
        let log = engine.store.log();
        if log.stats().standing {
            // Apply waits for the log, and openraft for apply.
            engine.store.hurry_checkpoint();
            if let Err(e) = log.release(upto) {
                log_warn!(e, "log");
            }
            continue;
        }
        if upto <= purged || !noticed(&engine, upto).await {
            continue;
        }
        if engine.raft().trigger().purge_log(upto).await.is_ok() {
            log_debug!("purge up to {upto}");
            purged = upto;
        }
    }
}

/// Makes openraft see that a checkpoint has the log up to there: to it that
/// is a snapshot, and it purges nothing beyond its last one.
async fn noticed(engine: &Engine, upto: u64) -> bool {
    let mut metrics = engine.raft().metrics();
    let has = |at: Option<LogId>| at.is_some_and(|id| id.index >= upto);
    if has(metrics.borrow_watched().snapshot) {
        return true;
    }
    if engine.raft().trigger().snapshot().await.is_err() {
        return false;
    }
    let end = Instant::now() + NOTICE_TIMEOUT;
    while Instant::now() < end && !engine.store.log().stats().standing {
        if has(metrics.borrow_watched().snapshot) {
            return true;
        }
        if let Ok(Err(_)) = timeout(FLOOR_INTERVAL, metrics.changed()).await {
            return false;
        }
    }
    false
}
