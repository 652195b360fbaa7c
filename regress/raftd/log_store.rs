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

//! openraft's own suite on the log store.  The suite makes node ids of
//! integers, so an adapter puts a second type configuration over the store:
//! both have the same serialized form.  The state machine is the least one
//! that the suite accepts, in memory.

use crate::dir::Dir;
use common::fs::{InodeNo, NodeId, SetAttr, Time};
use futures_util::{Stream, StreamExt, TryStreamExt};
use openraft::alias::{
    EntryOf, LeaderIdOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf,
};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, IOFlushed, LogState, RaftLogStorage};
use openraft::storage::{LeaderBoundedStreamError, RaftSnapshotBuilder, Snapshot, SnapshotMeta};
use openraft::storage::{RaftLogStorageExt, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftLeaderId;
use openraft::{OptionalSend, RaftLogReader, StorageError};
use raftd::age::unsure;
use raftd::fs::op::{Check, Command, Op};
use raftd::payload::Payload;
use raftd::raft::{Entry, EntryPayload, LogId, PeerNode, TypeConfig};
use raftd::store::log_store::{LogReader, LogStore, Options};
use raftd::store::wal;
use serde::de::DeserializeOwned;
use serde::Serialize;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex};

mod dir;

openraft::declare_raft_types!(
    pub SuiteConfig:
        D = Command,
        R = (),
        NodeId = u64,
        Node = PeerNode,
);

type C = SuiteConfig;

fn convert<A: Serialize, B: DeserializeOwned>(value: &A) -> B {
    postcard::from_bytes(&postcard::to_stdvec(value).unwrap()).unwrap()
}

struct Store(LogStore);
struct Reader(LogReader);

impl RaftLogReader<C> for Reader {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<EntryOf<C>>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let entries = self.0.try_get_log_entries(range).await?;
        Ok(entries.iter().map(convert).collect())
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> io::Result<Vec<EntryOf<C>>> {
        let entries = self.0.limited_get_log_entries(start, end).await?;
        Ok(entries.iter().map(convert).collect())
    }

    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = io::Result<EntryOf<C>>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let entries = self.0.entries_stream(range).await;
        entries.map_ok(|entry| convert(&entry))
    }

    async fn leader_bounded_stream<R>(
        &mut self,
        leader: openraft::alias::LeaderIdOf<C>,
        range: R,
    ) -> impl Stream<Item = Result<EntryOf<C>, LeaderBoundedStreamError<C>>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let entries = self.0.leader_bounded_stream(convert(&leader), range).await;
        entries.map(|item| {
            item.map(|entry| convert(&entry)).map_err(|err| match err {
                LeaderBoundedStreamError::IoError(err) => LeaderBoundedStreamError::IoError(err),
                changed => LeaderBoundedStreamError::IoError(io::Error::other(changed.to_string())),
            })
        })
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<C>>> {
        Ok(convert(&self.0.read_vote().await?))
    }
}

impl RaftLogStorage<C> for Store {
    type LogReader = Reader;

    async fn get_log_state(&mut self) -> io::Result<LogState<C>> {
        let state = self.0.get_log_state().await?;
        Ok(LogState {
            last_purged_log_id: convert(&state.last_purged_log_id),
            last_log_id: convert(&state.last_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Reader {
        Reader(self.0.get_log_reader().await)
    }

    async fn save_vote(&mut self, vote: &VoteOf<C>) -> io::Result<()> {
        self.0.save_vote(&convert(vote)).await
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<C>>) -> io::Result<()> {
        self.0.save_committed(convert(&committed)).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogIdOf<C>>> {
        Ok(convert(&self.0.read_committed().await?))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<C>) -> io::Result<()>
    where
        I: IntoIterator<Item = EntryOf<C>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().map(|entry| convert(&entry)).collect();
        let (done, wait) = TypeConfig::oneshot();
        let result = self.0.append(entries, IOFlushed::signal(done)).await;
        tokio::spawn(async move {
            callback.io_completed(wait.await.unwrap_or_else(|err| Err(io::Error::other(err))));
        });
        result
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<C>>) -> io::Result<()> {
        self.0.truncate_after(convert(&last)).await
    }

    async fn purge(&mut self, upto: LogIdOf<C>) -> io::Result<()> {
        self.0.purge(convert(&upto)).await
    }
}

#[derive(Default)]
struct Applied {
    last: Option<LogIdOf<C>>,
    membership: StoredMembershipOf<C>,
    snapshot: Option<SnapshotMetaOf<C>>,
}

#[derive(Clone, Default)]
struct StateMachine(Arc<Mutex<Applied>>);

impl RaftSnapshotBuilder<C> for StateMachine {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<C, ()>> {
        let mut applied = self.0.lock().unwrap();
        let meta = SnapshotMeta {
            last_log_id: applied.last,
            last_membership: applied.membership.clone(),
        };
        applied.snapshot = Some(meta.clone());
        Ok(Snapshot { meta, snapshot: () })
    }
}

impl RaftStateMachine<C> for StateMachine {
    type SnapshotData = ();
    type SnapshotBuilder = StateMachine;

    async fn applied_state(&mut self) -> io::Result<(Option<LogIdOf<C>>, StoredMembershipOf<C>)> {
        let applied = self.0.lock().unwrap();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<C>>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let mut applied = self.0.lock().unwrap();
            applied.last = Some(entry.log_id());
            if let Some(membership) = entry.get_membership() {
                applied.membership = StoredMembershipOf::<C>::new(applied.last, membership);
            }
            drop(applied);
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> StateMachine {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<C>, _: ()) -> io::Result<()> {
        let mut applied = self.0.lock().unwrap();
        applied.last = meta.last_log_id;
        applied.membership = meta.last_membership.clone();
        applied.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<C, ()>>> {
        let applied = self.0.lock().unwrap();
        Ok(applied
            .snapshot
            .clone()
            .map(|meta| Snapshot { meta, snapshot: () }))
    }
}

struct Builder {
    cache_bytes: usize,
}

impl StoreBuilder<C, Store, StateMachine, Dir> for Builder {
    async fn build(&self) -> Result<(Dir, Store, StateMachine), StorageError<C>> {
        let dir = Dir::new("suite");
        let opts = Options {
            wal: wal::Options {
                segment_size: 64 << 10,
                ..wal::Options::default()
            },
            cache_bytes: self.cache_bytes,
        };
        let store = LogStore::open_with(&dir.0, &opts).unwrap();
        Ok((dir, Store(store), StateMachine::default()))
    }
}

async fn run(cache_bytes: usize) {
    Suite::test_all(Builder { cache_bytes }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suite() {
    run(8 << 20).await;
}

/// The same with nothing in memory that is on disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suite_from_disk() {
    run(0).await;
}

fn log_id(index: u64) -> LogId {
    let leader = LeaderIdOf::<TypeConfig>::new(1, NodeId(1));
    LogId::new(leader.to_committed(), index)
}

fn setattr(index: u64, ino: u64) -> Entry {
    let op = Op::Setattr {
        ino: InodeNo(ino),
        set: SetAttr::default(),
        check: Check::Kernel,
    };
    let cmd = Command {
        origin: None,
        time: Time::default(),
        op,
        payload: Payload::none(),
    };
    Entry::new(log_id(index), EntryPayload::Normal(cmd))
}

/// What entries touch that may not be committed nobody can be sure of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsure_after_a_start() {
    let dir = Dir::new("unsure");
    let mut log = LogStore::open(&dir.0).unwrap();
    assert!(unsure(&log).await.unwrap().is_empty());
    let first: Vec<Entry> = (0..4).map(|i| setattr(i, 10 + i)).collect();
    log.blocking_append(first).await.unwrap();
    log.save_committed(Some(log_id(2))).await.unwrap();
    // Takes down with it how far it was committed.
    log.blocking_append(vec![setattr(4, 20), setattr(5, 13)])
        .await
        .unwrap();
    drop(log);
    let log = LogStore::open(&dir.0).unwrap();
    let mut found: Vec<u64> = unsure(&log).await.unwrap().iter().map(|i| i.0).collect();
    found.sort_unstable();
    assert_eq!(found, [13, 20]);
}
