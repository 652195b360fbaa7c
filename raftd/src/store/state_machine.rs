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

//! Applies the entries of the log, for openraft.  Runs in raftd.  It never
//! decides a result: fs/apply.rs does, from the log alone, and what this
//! node's disk refuses is tried again until it accepts.
//!
//! One entry, between two others:
//!
//! 1. The local log has it on disk (an entry may be committed by the others
//!    before that), or a checkpoint could hold what the log does not.
//! 2. fs/apply.rs changes the metadata, under the exclusive lock, with it the
//!    index of the entry.  That lock is held for no I/O on contents.
//! 3. The backing files follow.  A write, spill or zeroing, and a truncate
//!    that makes the file longer, must be there before anybody sees the new
//!    size and version, so in step 2 the inode's record was put back as it
//!    was, and now the new one is put.  Nobody else can tell: of what else a
//!    write touches only the blocks are looked at, to find holes, where those
//!    of the next moment are as good, and a checkpoint waits for the end of
//!    the entry.  Another truncate or a removal follows after it is visible: a
//!    file that is longer than its size shows nothing.
//! 4. The rest of raftd is told, then openraft.

#![forbid(unsafe_code)]

use super::meta::{self, MetaError, View, Writer};
use super::Store;
use crate::fs::inode::inode_key;
use crate::fs::op::{Command, Op, Origin};
use crate::fs::{self, Change, DataOp, Effects, Reply, Verdict};
use crate::payload::Payload;
use crate::raft::{Entry, EntryPayload, LogId, StoredMembership, TypeConfig};
use bytes::Bytes;
use common::fs::{InodeNo, NodeId};
use common::{fatal, log_info, log_warn};
use futures_util::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot, SnapshotMeta};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{watch, MutexGuard};
use tokio::task::block_in_place;

/// Payloads above this are written with the runtime's other tasks moved away
/// from this thread; that costs some microseconds, a stalled heartbeat more.
const HEAVY: usize = 64 << 10;
/// The disk is slow now: what comes next is heavy, too.  So it is while a
/// checkpoint syncs, when the file system may make anybody wait for its journal.
const SLOW: Duration = Duration::from_millis(2);
/// Between two attempts when this node's disk refuses.
const RETRY: Duration = Duration::from_secs(1);
/// What an entry takes of the log beside its payload, about.
const ENTRY_COST: u64 = 128;

/// What the rest of raftd learns of each entry, in the order of the log and
/// after it can be read.
#[derive(Debug)]
pub struct Applied {
    pub index: u64,
    /// A raftd's node and nonce, if the entry opened its session.
    pub opened: Option<(NodeId, u64)>,
    pub origin: Option<Origin>,
    pub verdict: Verdict,
    pub changes: Vec<Change>,
}

/// Called by apply; it must never block.
pub type Sink = Box<dyn Fn(Applied) + Send + Sync>;

/// Up to where the log has been applied, or checkpointed.
#[derive(Clone, Debug, Default)]
pub struct Position {
    pub last_applied: Option<LogId>,
    pub membership: StoredMembership,
}

/// The index as of which this is the state.
pub fn last_applied(v: &View<'_>) -> Result<u64, MetaError> {
    let id: Option<LogId> = v.load(meta::LAST_APPLIED, "last applied")?;
    Ok(id.map_or(0, |id| id.index))
}

impl Position {
    /// What the last checkpoint committed.
    pub(super) fn load(meta: &meta::Meta) -> Result<Position, MetaError> {
        let mut position = Position::default();
        if let Some(value) = meta.get_committed(meta::LAST_APPLIED)? {
            position.last_applied = Some(meta::decode(&value, "last applied")?);
        }
        if let Some(value) = meta.get_committed(meta::MEMBERSHIP)? {
            position.membership = meta::decode(&value, "membership")?;
        }
        Ok(position)
    }

    pub fn index(&self) -> Option<u64> {
        self.last_applied.as_ref().map(|id| id.index)
    }

    fn next_index(&self) -> u64 {
        self.index().map_or(0, |index| index + 1)
    }
}

/// Where apply is; locked from the beginning of an entry to its end.
#[derive(Default)]
pub(super) struct At {
    pub position: Position,
    /// In the middle of the next entry, waiting for the disk.
    pub unfinished: bool,
}

pub struct StateMachine {
    store: Arc<Store>,
    /// Up to where the local log is on disk.
    flushed: watch::Receiver<u64>,
    sink: Sink,
    slow: bool,
}

impl StateMachine {
    pub fn new(store: Arc<Store>, sink: Sink) -> StateMachine {
        StateMachine {
            flushed: store.log.flushed(),
            store,
            sink,
            slow: false,
        }
    }

    /// Step 1.
    async fn flushed(&mut self, index: u64) -> io::Result<()> {
        if *self.flushed.borrow() >= index {
            return Ok(());
        }
        match self.flushed.wait_for(|upto| *upto >= index).await {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("apply: the log has ended")),
        }
    }

    async fn entry(&mut self, entry: Entry) -> io::Result<Applied> {
        let store = self.store.clone();
        let mut at = store.at.lock().await;
        let index = entry.log_id.index;
        if index != at.position.next_index() {
            let text = format!("apply: entry {index} after {:?}", at.position.index());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mut applied = Applied {
            index,
            opened: None,
            origin: None,
            verdict: Verdict::Done(Ok(Reply::Done)),
            changes: Vec::new(),
        };
        let mut bytes = ENTRY_COST;
        match entry.payload {
            EntryPayload::Blank => self.keep(entry.log_id, None),
            EntryPayload::Membership(membership) => {
                at.position.membership = StoredMembership::new(Some(entry.log_id), membership);
                self.keep(entry.log_id, Some(&at.position.membership));
            }
            EntryPayload::Normal(cmd) => {
                bytes += u64::from(cmd.payload.len);
                let (verdict, effects, hidden) = self.metadata(entry.log_id, &cmd);
                if !effects.data.is_empty() {
                    at = self.contents(at, &store, &effects.data, &cmd.payload).await;
                }
                if let Some(record) = hidden {
                    record.show(&store, index);
                }
                applied.verdict = verdict;
                applied.changes = effects.changes;
                applied.origin = cmd.origin;
                if let (Op::OpenSession { node, nonce, .. }, Verdict::Done(Ok(_))) =
                    (cmd.op, &applied.verdict)
                {
                    applied.opened = Some((node, nonce));
                }
            }
        }
        at.position.last_applied = Some(entry.log_id);
        drop(at);
        store.count(bytes);
        Ok(applied)
    }

    /// An entry of openraft's own changes nothing but where we are.
    fn keep(&self, log_id: LogId, membership: Option<&StoredMembership>) {
        let mut tx = self.store.meta.write();
        let kept = match membership {
            Some(membership) => tx.save(meta::MEMBERSHIP, membership, "membership"),
            None => Ok(()),
        };
        if let Err(e) = kept.and_then(|()| tx.save(meta::LAST_APPLIED, &log_id, "last applied")) {
            fatal!(e, "apply {}", log_id.index);
        }
    }

    /// Step 2: answers also the record that is to be put when the bytes are
    /// there.
    fn metadata(&self, log_id: LogId, cmd: &Command) -> (Verdict, Effects, Option<Record>) {
        // A terabyte has a million extents.
        let long = match &cmd.op {
            Op::Setattr { set, .. } => set.size.is_some(),
            Op::Fallocate { .. } | Op::Release { .. } | Op::OpenSession { .. } => true,
            _ => false,
        };
        match blocking(long, || self.try_metadata(log_id, cmd)) {
            Ok(done) => done,
            // Half an entry may be in the overlay; only a new start gets rid
            // of it.
            Err(e) => fatal!(e, "apply {}", log_id.index),
        }
    }

    fn try_metadata(
        &self,
        log_id: LogId,
        cmd: &Command,
    ) -> Result<(Verdict, Effects, Option<Record>), MetaError> {
        let mut tx = self.store.meta.write();
        let ino = match &cmd.op {
            Op::Write { ino, .. } | Op::Setattr { ino, .. } | Op::Fallocate { ino, .. } => {
                Some(*ino)
            }
            _ => None,
        };
        let before = ino.map(|ino| Record::get(&tx, ino)).transpose()?;
        let size = match (&cmd.op, ino) {
            (Op::Setattr { .. } | Op::Fallocate { .. }, Some(ino)) => {
                fs::inode::get(&tx, ino)?.map_or(0, |i| i.size())
            }
            _ => 0,
        };
        let (verdict, effects) = fs::apply::apply(&mut tx, log_id.index, cmd)?;
        tx.save(meta::LAST_APPLIED, &log_id, "last applied")?;
        let first = |op: &DataOp| match op {
            DataOp::Write { .. } | DataOp::Spill { .. } | DataOp::Zero { .. } => true,
            DataOp::Truncate { size: to, .. } => *to > size,
            DataOp::Remove { .. } | DataOp::Reserve { .. } => false,
        };
        let hidden = match before {
            Some(before) if effects.data.iter().any(first) => {
                let after = Record::get(&tx, before.ino)?;
                before.put(&mut tx)?;
                Some(after)
            }
            _ => None,
        };
        if hidden.is_none() {
            self.store.shown.store(log_id.index, Ordering::SeqCst);
        }
        Ok((verdict, effects, hidden))
    }

    /// Step 3.  While the disk refuses, the entry is unfinished, and whoever
    /// wants the state between two entries is told so.
    async fn contents<'s>(
        &mut self,
        mut at: MutexGuard<'s, At>,
        store: &'s Store,
        ops: &[DataOp],
        payload: &Payload,
    ) -> MutexGuard<'s, At> {
        let index = at.position.next_index();
        let bytes = self.bytes(index, ops, payload);
        for op in ops {
            while let Err((ino, e)) = self.data_op(op, &bytes) {
                self.refused(index, ino, e);
                at.unfinished = true;
                drop(at);
                tokio::time::sleep(RETRY).await;
                at = store.at.lock().await;
            }
        }
        if at.unfinished {
            at.unfinished = false;
            store.set_alarm(None);
            log_info!("apply goes on at entry {index}");
        }
        at
    }

    fn bytes(&self, index: u64, ops: &[DataOp], payload: &Payload) -> Bytes {
        if !ops.iter().any(|op| matches!(op, DataOp::Write { .. })) {
            return Bytes::new();
        }
        let heavy = self.slow || payload.len as usize > HEAVY;
        match blocking(heavy, || payload.bytes()) {
            Ok(bytes) => bytes,
            // The entry is committed, and this node has lost its bytes.
            Err(e) => fatal!(e, "apply {index}"),
        }
    }

    fn data_op(&mut self, op: &DataOp, bytes: &Bytes) -> Result<(), (InodeNo, io::Error)> {
        let data = &self.store.data;
        let began = Instant::now();
        // To free or to take many blocks takes a while.
        let long = matches!(op, DataOp::Zero { .. } | DataOp::Reserve { .. });
        let heavy = self.slow || long || bytes.len() > HEAVY || self.store.is_syncing();
        let result = blocking(heavy, || match op {
            DataOp::Spill { ino, contents } => data.spill(*ino, contents).map_err(|e| (*ino, e)),
            DataOp::Write { ino, offset } => {
                data.write(*ino, *offset, bytes).map_err(|e| (*ino, e))
            }
            DataOp::Truncate { ino, size } => data.truncate(*ino, *size).map_err(|e| (*ino, e)),
            DataOp::Remove { ino } => {
                data.remove(*ino);
                Ok(())
            }
            DataOp::Zero { ino, offset, len } => {
                data.zero(*ino, *offset, *len).map_err(|e| (*ino, e))
            }
            DataOp::Reserve {
                ino,
                offset,
                len,
                blocks,
            } => {
                let reserved = data.reserve(*ino, *offset, *len, *blocks);
                reserved.map_err(|e| (*ino, e))
            }
        });
        self.slow = began.elapsed() > SLOW;
        result
    }

    /// The cluster has agreed on the operation, and this node's disk cannot
    /// follow.  It falls behind until the disk can; it never answers this.
    fn refused(&self, index: u64, ino: InodeNo, e: io::Error) {
        self.store.data.squeeze();
        if self.store.alarm().is_none() {
            log_warn!(e, "apply stopped at entry {index}, inode {ino}");
        }
        let alarm = format!("apply stopped at entry {index}, inode {ino}: {e}");
        self.store.set_alarm(Some(alarm));
    }
}

/// Runs what may block, when it may block for long, without the runtime's
/// thread.
fn blocking<T>(heavy: bool, f: impl FnOnce() -> T) -> T {
    if heavy {
        block_in_place(f)
    } else {
        f()
    }
}

/// The record of an inode as it is stored, or that there is none.
struct Record {
    ino: InodeNo,
    value: Option<Vec<u8>>,
}

impl Record {
    fn get(tx: &Writer<'_>, ino: InodeNo) -> Result<Record, MetaError> {
        let value = tx.get(&inode_key(ino))?.map(<[u8]>::to_vec);
        Ok(Record { ino, value })
    }

    /// The bytes are there.
    fn show(self, store: &Store, index: u64) {
        let ino = self.ino;
        let mut tx = store.meta.write();
        store.shown.store(index, Ordering::SeqCst);
        if let Err(e) = self.put(&mut tx) {
            fatal!(e, "apply to inode {ino}");
        }
    }

    fn put(self, tx: &mut Writer<'_>) -> Result<(), MetaError> {
        match self.value {
            Some(value) => tx.put(&inode_key(self.ino), value),
            None => tx.delete(&inode_key(self.ino))?,
        }
        Ok(())
    }
}

/// Stands where openraft expects the bytes of a snapshot: to it a checkpoint
/// is one, so that the log may be purged.  It cannot be sent.
#[derive(Clone, Debug)]
pub struct CheckpointMark;

type CheckpointSnapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, CheckpointMark>;
type CheckpointMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;

fn snapshot(position: Position) -> CheckpointSnapshot {
    Snapshot {
        meta: SnapshotMeta {
            last_log_id: position.last_applied,
            last_membership: position.membership,
        },
        snapshot: CheckpointMark,
    }
}

/// The checkpoint as it was when openraft asked.  One that is published later
/// may cover entries of which openraft does not know yet that they are
/// applied.
pub struct SnapshotBuilder(Position);

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = CheckpointMark;

    async fn build_snapshot(&mut self) -> io::Result<CheckpointSnapshot> {
        Ok(snapshot(self.0.clone()))
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = CheckpointMark;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let position = self.store.at.lock().await.position.clone();
        Ok((position.last_applied, position.membership))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            self.flushed(entry.log_id.index).await?;
            let applied = self.entry(entry).await?;
            (self.sink)(applied);
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder(self.store.checkpointed())
    }

    async fn install_snapshot(&mut self, _: &CheckpointMeta, _: CheckpointMark) -> io::Result<()> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "install snapshot: catch-up by snapshot is not there",
        ))
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<CheckpointSnapshot>> {
        let position = self.store.checkpointed();
        Ok(position.last_applied.is_some().then(|| snapshot(position)))
    }
}
