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

//! The state machine on a real store: contents and metadata through restarts,
//! crashes at any point and checkpoints at any other; files that may not go
//! yet; a directory that is not ours; a disk that is full for a while.

use crate::dir::{Dir, Tmpfs};
use bytes::Bytes;
use common::fs::*;
use futures_util::stream;
use openraft::alias::{LeaderIdOf, SnapshotOf};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::entry::RaftEntry;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::vote::RaftLeaderId;
use openraft::{RaftLogReader, RaftSnapshotBuilder};
use raftd::fs::dirent;
use raftd::fs::inode::{self, Contents};
use raftd::fs::op::{Check, Command, Op, Origin, RenameHow, WriteAt};
use raftd::fs::{Change, Outcome, Reply, Verdict};
use raftd::payload::Payload;
use raftd::raft::{Entry, EntryPayload, LogId, PeerNode, Raft, SnapshotData, TypeConfig, Vote};
use raftd::store::checkpoint::Checkpoint;
use raftd::store::data::Data;
use raftd::store::log_store::{self, LogStore};

use raftd::store::state_machine::{Applied, StateMachine};
use raftd::store::{wal, Store, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

mod dir;

const ROOT: InodeNo = InodeNo::ROOT;
const SUPER: Cred = Cred { uid: 0, gid: 0 };
const ME: NodeId = NodeId(1);
const MAP: usize = 1 << 30;
const LEASE: Duration = Duration::from_secs(10);
/// Index of the entry that opens the session of all others.
const SESSION: u64 = 2;
/// The log's entries before those of the session.
const FIRST: u64 = SESSION + 1;
const PATIENCE: Duration = Duration::from_secs(60);

/// A log that is made in no time.
fn log_options() -> log_store::Options {
    let wal = wal::Options {
        segment_size: 4 << 20,
        ..wal::Options::default()
    };
    log_store::Options {
        wal,
        ..log_store::Options::default()
    }
}

fn open(dir: &Path) -> Result<Store, StoreError> {
    Store::open_with(dir, "test", ME, MAP, &log_options())
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

/// A store with its state machine, as in raftd, but fed by hand.
struct Node {
    rt: Runtime,
    sm: StateMachine,
    log: LogStore,
    store: Arc<Store>,
    seen: Arc<Mutex<Vec<Applied>>>,
}

impl Node {
    /// Opens the store, and applies what its log has beyond the checkpoint.
    fn open(dir: &Path) -> Node {
        let rt = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let store = Arc::new(open(dir).unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let sink = Box::new(move |applied| sink.lock().unwrap().push(applied));
        let mut node = Node {
            sm: StateMachine::new(store.clone(), sink),
            log: store.log().clone(),
            store,
            seen,
            rt,
        };
        let from = node.applied().map_or(0, |index| index + 1);
        node.apply(from);
        node.seen.lock().unwrap().clear();
        node
    }

    fn applied(&mut self) -> Option<u64> {
        let state = self.rt.block_on(self.sm.applied_state()).unwrap();
        state.0.map(|id| id.index)
    }

    /// The index after the last of the log.
    fn end(&mut self) -> u64 {
        let state = self.rt.block_on(self.log.get_log_state()).unwrap();
        state.last_log_id.map_or(0, |id| id.index + 1)
    }

    fn append(&mut self, entries: Vec<Entry>) {
        self.rt.block_on(self.log.blocking_append(entries)).unwrap();
    }

    /// From the log, as openraft does.
    fn apply(&mut self, from: u64) {
        let to = self.end();
        let (log, sm) = (&mut self.log, &mut self.sm);
        self.rt.block_on(async {
            let mut reader = log.get_log_reader().await;
            let mut from = from;
            while from < to {
                let entries = reader.try_get_log_entries(from..to.min(from + 64)).await;
                let entries = entries.unwrap();
                assert_eq!(entries.first().map(|e| e.log_id.index), Some(from));
                from += entries.len() as u64;
                let entries = entries.into_iter().map(|e| Ok((e, None)));
                sm.apply(stream::iter(entries)).await.unwrap();
            }
        });
    }

    fn run(&mut self, entries: Vec<Entry>) -> Vec<Applied> {
        let from = self.end();
        self.append(entries);
        self.apply(from);
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    /// One operation of the session, which must be the next.
    fn op(&mut self, op: Op, bytes: &[u8]) -> Outcome {
        let index = self.end();
        let mut applied = self.run(vec![normal(index, op, bytes)]);
        match applied.pop() {
            Some(Applied {
                verdict: Verdict::Done(outcome),
                ..
            }) => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn create(&mut self, name: &str) -> InodeNo {
        match self.op(create(name), b"") {
            Ok(Reply::Entry { attr, .. }) => attr.ino,
            other => panic!("{other:?}"),
        }
    }

    fn checkpoint(&self) {
        let checkpoint = Checkpoint::start(self.store.clone()).unwrap();
        assert!(self.rt.block_on(checkpoint.request()));
        checkpoint.shutdown();
    }

    fn read(&self, ino: InodeNo) -> Vec<u8> {
        let contents = inode::contents(&self.store.meta().read(), ino).unwrap();
        match contents {
            Contents::Inline(bytes) => bytes,
            Contents::Backing { size, .. } => {
                let bytes = self.store.data().read(ino, 0, size as usize + 1).unwrap();
                assert_eq!(bytes.len() as u64, size, "end of backing file {ino}");
                bytes
            }
            other => panic!("{other:?}"),
        }
    }

    /// All metadata that is not this node's own, and a checksum of all files.
    fn dump(&self) -> (BTreeMap<Vec<u8>, Vec<u8>>, BTreeMap<InodeNo, u32>) {
        let mut keys = BTreeMap::new();
        for item in self.store.meta().read().range(&[], &[]).unwrap() {
            let (key, value) = item.unwrap();
            if key[0] != b'!' {
                keys.insert(key.to_vec(), value.to_vec());
            }
        }
        let inodes = keys.keys().filter(|k| k[0] == b'i');
        let inodes = inodes.map(|k| InodeNo(u64::from_be_bytes(k[1..].try_into().unwrap())));
        let files = inodes.filter(|ino| {
            let inode = inode::load(&self.store.meta().read(), *ino).unwrap();
            inode.mode & S_IFMT == S_IFREG
        });
        let files = files.map(|ino| (ino, crc32c::crc32c(&self.read(ino))));
        let files = files.collect();
        (keys, files)
    }
}

fn log_id(index: u64) -> LogId {
    let leader = LeaderIdOf::<TypeConfig>::new(1, ME);
    LogId::new(leader.to_committed(), index)
}

fn normal(index: u64, op: Op, bytes: &[u8]) -> Entry {
    let origin = (index >= FIRST).then(|| Origin {
        session: SessionId(SESSION),
        seq: index - SESSION,
        acked: index - SESSION - 1,
    });
    let time = Time {
        sec: 1_000_000 + index as i64,
        nsec: 0,
    };
    let payload = match bytes {
        [] => Payload::none(),
        bytes => Payload::new(Bytes::copy_from_slice(bytes)),
    };
    let cmd = Command {
        origin,
        time,
        op,
        payload,
    };
    Entry::new(log_id(index), EntryPayload::Normal(cmd))
}

/// What every log begins with.
fn head() -> Vec<Entry> {
    let members = openraft::Membership::new_with_defaults(vec![BTreeSet::from([ME])], [ME]);
    let open = Op::OpenSession {
        node: ME,
        nonce: 7,
        lease: LEASE,
    };
    vec![
        Entry::new(log_id(0), EntryPayload::Membership(members)),
        Entry::new(log_id(1), EntryPayload::Blank),
        normal(SESSION, open, b""),
    ]
}

fn create(name: &str) -> Op {
    Op::Create {
        parent: ROOT,
        name: name.into(),
        mode: S_IFREG | 0o644,
        umask: 0,
        excl: false,
        cred: SUPER,
    }
}

fn write(ino: InodeNo, at: WriteAt) -> Op {
    Op::Write {
        ino,
        at,
        kill_priv: false,
    }
}

fn resize(ino: InodeNo, size: u64) -> Op {
    let set = SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    let check = Check::Kernel;
    Op::Setattr { ino, set, check }
}

fn unlink(name: &str) -> Op {
    Op::Unlink {
        parent: ROOT,
        name: name.into(),
        check: Check::Kernel,
    }
}

/// xorshift64*
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % n
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        let seed = self.below(u64::from(u32::MAX));
        (0..len)
            .map(|i| ((seed + i).wrapping_mul(0x9e37_79b1) >> 16) as u8)
            .collect()
    }
}

/// The entry at this place of the log with this seed.
fn random_entry(seed: u64, index: u64) -> Entry {
    if let Some(entry) = head().into_iter().nth(index as usize) {
        return entry;
    }
    let mut r = Random::new(seed << 32 | index);
    let r = &mut r;
    r.below(1);
    let ino = InodeNo(2 + r.below(2 + index / 8));
    let name = format!("f{}", r.below(16));
    let len = match r.below(8) {
        0..=2 => 1 + r.below(600),
        3..=6 => 1 + r.below(20_000),
        _ => 1 + r.below(200_000),
    };
    let (op, bytes) = match r.below(25) {
        0..=3 => (create(&name), Vec::new()),
        4..=9 => {
            let at = WriteAt::Offset(r.below(100_000) >> r.below(17));
            (write(ino, at), r.bytes(len))
        }
        10..=12 => (write(ino, WriteAt::End), r.bytes(len)),
        13..=15 => (resize(ino, r.below(150_000) >> r.below(17)), Vec::new()),
        16 => (unlink(&name), Vec::new()),
        17 => {
            let new_name = format!("f{}", r.below(16)).into();
            let op = Op::Rename {
                parent: ROOT,
                name: name.into(),
                new_parent: ROOT,
                new_name,
                how: RenameHow::Replace,
                check: Check::Kernel,
            };
            (op, Vec::new())
        }
        18 => {
            let inodes = (2..2 + index / 8).map(InodeNo).collect();
            (Op::Release { inodes }, Vec::new())
        }
        20..=24 => {
            let what = Fallocate {
                how: match r.below(4) {
                    0 => FallocateHow::Reserve,
                    1 => FallocateHow::Zero,
                    _ => FallocateHow::Punch,
                },
                offset: r.below(100_000) >> r.below(17),
                len: 1 + (r.below(100_000) >> r.below(17)),
                keep_size: r.below(3) > 0,
                kill_priv: false,
            };
            (Op::Fallocate { ino, what }, Vec::new())
        }
        _ => (Op::Nop, Vec::new()),
    };
    normal(index, op, &bytes)
}

fn random_entries(seed: u64, range: std::ops::Range<u64>) -> Vec<Entry> {
    range.map(|index| random_entry(seed, index)).collect()
}

/// What files must contain, as far as the replies tell.
#[derive(Default)]
struct Model(BTreeMap<InodeNo, Vec<u8>>);

impl Model {
    fn follow(&mut self, entry: &Entry, applied: &Applied) {
        let EntryPayload::Normal(cmd) = &entry.payload else {
            return;
        };
        if let Verdict::Done(Ok(reply)) = &applied.verdict {
            match (&cmd.op, reply) {
                (Op::Create { .. }, Reply::Entry { attr, created }) if *created => {
                    self.0.insert(attr.ino, Vec::new());
                }
                (Op::Write { ino, .. }, Reply::Written { offset, .. }) => {
                    let bytes = cmd.payload.bytes().unwrap();
                    let (from, to) = (*offset as usize, *offset as usize + bytes.len());
                    let file = self.0.get_mut(ino).unwrap();
                    file.resize(file.len().max(to), 0);
                    file[from..to].copy_from_slice(&bytes);
                }
                (Op::Setattr { ino, set, .. }, _) => {
                    let file = self.0.get_mut(ino).unwrap();
                    file.resize(set.size.unwrap() as usize, 0);
                }
                (Op::Fallocate { ino, what }, Reply::Attr(attr)) => {
                    let file = self.0.get_mut(ino).unwrap();
                    file.resize(attr.size as usize, 0);
                    let to = file.len().min((what.offset + what.len) as usize);
                    let zeros = file.get_mut(what.offset as usize..to).unwrap_or(&mut []);
                    if what.how != FallocateHow::Reserve {
                        zeros.fill(0);
                    }
                }
                _ => {}
            }
        }
        for change in &applied.changes {
            if let Change::Gone { ino } = change {
                self.0.remove(ino);
            }
        }
    }
}

/// A run of the same log that nothing disturbs, checked against the model.
fn clean(seed: u64, len: u64) -> (Dir, Node) {
    let dir = Dir::new("sm");
    let mut node = Node::open(&dir.0);
    let mut model = Model::default();
    let entries = random_entries(seed, 0..len);
    let applied = node.run(entries.clone());
    assert_eq!(applied.len(), entries.len());
    for (entry, applied) in entries.iter().zip(&applied) {
        assert_eq!(entry.log_id.index, applied.index);
        model.follow(entry, applied);
    }
    for (ino, bytes) in &model.0 {
        assert!(node.read(*ino) == *bytes, "contents of {ino}");
    }
    assert_eq!(node.dump().1.len(), model.0.len());
    (dir, node)
}

/// Backing files, by the number in their names.
fn backing_files(dir: &Path) -> BTreeMap<u64, PathBuf> {
    let mut found = BTreeMap::new();
    for sub in fs::read_dir(dir.join("data")).unwrap() {
        for file in fs::read_dir(sub.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            found.insert(u64::from_str_radix(name, 16).unwrap(), path);
        }
    }
    found
}

/// Same tree, same contents; and after a checkpoint just the files that belong
/// to it.
fn assert_same(dir: &Path, node: &Node, clean: &Node) {
    let (keys, files) = node.dump();
    let (clean_keys, clean_files) = clean.dump();
    assert!(keys == clean_keys, "metadata differs");
    assert_eq!(files, clean_files);
    node.checkpoint();
    let view = node.store.meta().read();
    let backing = files.keys().filter(|ino| {
        let contents = inode::contents(&view, **ino).unwrap();
        matches!(contents, Contents::Backing { .. })
    });
    let backing: Vec<u64> = backing.map(|ino| ino.0).collect();
    let found: Vec<u64> = backing_files(dir).into_keys().collect();
    assert_eq!(found, backing);
}

#[test]
fn write_spill_truncate_read() {
    let dir = Dir::new("sm");
    let mut node = Node::open(&dir.0);
    node.run(head());
    let ino = node.create("f");
    node.op(write(ino, WriteAt::Offset(3)), b"small").unwrap();
    assert_eq!(node.read(ino), b"\0\0\0small");
    assert!(node.store.data().open_read(ino).is_err());

    let big = vec![7; IO_MAX];
    match node.op(write(ino, WriteAt::End), &big) {
        Ok(Reply::Written { offset: 8, attr }) => assert_eq!(attr.size, 8 + IO_MAX as u64),
        other => panic!("{other:?}"),
    }
    let mut want = b"\0\0\0small".to_vec();
    want.extend(&big);
    assert!(node.read(ino) == want);

    node.op(resize(ino, 6), b"").unwrap();
    node.op(resize(ino, 1 << 36), b"").unwrap();
    node.op(write(ino, WriteAt::Offset(1 << 35)), b"far")
        .unwrap();
    let file = fs::File::from(node.store.data().open_read(ino).unwrap());
    assert_eq!(file.metadata().unwrap().len(), 1 << 36);
    let mut buf = [1; 10];
    file.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"\0\0\0sma\0\0\0\0");
    let got = node.store.data().read(ino, (1 << 35) - 1, 5).unwrap();
    assert_eq!(got, b"\0far\0");
}

#[test]
fn restart_without_checkpoint_replays() {
    let (_clean_dir, clean) = clean(1, 300);
    let dir = Dir::new("sm");
    let mut node = Node::open(&dir.0);
    node.run(random_entries(1, 0..300));
    drop(node);
    let mut node = Node::open(&dir.0);
    assert_eq!(node.applied(), Some(299));
    assert_same(&dir.0, &node, &clean);
    // And with one there is nothing to replay.
    drop(node);
    let node = Node::open(&dir.0);
    assert_eq!(node.store.checkpointed().index(), Some(299));
    assert_same(&dir.0, &node, &clean);
}

/// What a power cut may leave of the files written since the checkpoint of
/// which `saved` is a copy: of each block the old or the new contents, and
/// either size; of a new file perhaps nothing.
fn lose(dir: &Path, saved: &BTreeMap<u64, Vec<u8>>, r: &mut Random) {
    for (ino, path) in backing_files(dir) {
        let new = fs::read(&path).unwrap();
        let old = saved.get(&ino);
        if old.is_none() && r.below(3) == 0 {
            fs::remove_file(&path).unwrap();
            continue;
        }
        let old = old.map_or(&[][..], Vec::as_slice);
        let len = if r.below(2) == 0 {
            old.len()
        } else {
            new.len()
        };
        let mut mixed = Vec::with_capacity(len);
        while mixed.len() < len {
            let from = mixed.len();
            let to = len.min(from + BLOCK as usize);
            let (a, b) = if r.below(2) == 0 {
                (old, &new[..])
            } else {
                (&new[..], old)
            };
            let block = a.get(from..to).or(b.get(from..to));
            match block {
                Some(block) => mixed.extend_from_slice(block),
                None => mixed.resize(to, 0),
            }
        }
        fs::write(&path, mixed).unwrap();
    }
}

fn save(dir: &Path) -> BTreeMap<u64, Vec<u8>> {
    let files = backing_files(dir).into_iter();
    files
        .map(|(ino, path)| (ino, fs::read(path).unwrap()))
        .collect()
}

#[test]
fn crashes_and_checkpoints_anywhere() {
    const LEN: u64 = 500;
    for seed in 1..=4 {
        let (_clean_dir, clean) = clean(seed, LEN);
        let dir = Dir::new("sm");
        let mut node = Node::open(&dir.0);
        let mut saved = BTreeMap::new();
        let mut r = Random::new(seed);
        let mut at = 0;
        while at < LEN {
            let to = LEN.min(at + 1 + r.below(60));
            node.run(random_entries(seed, at..to));
            at = to;
            match r.below(5) {
                0 => {
                    node.checkpoint();
                    saved = save(&dir.0);
                }
                1 => {
                    drop(node);
                    node = Node::open(&dir.0);
                }
                2 => {
                    drop(node);
                    lose(&dir.0, &saved, &mut r);
                    node = Node::open(&dir.0);
                }
                _ => {}
            }
        }
        assert_same(&dir.0, &node, &clean);
    }
}

/// Not a test but the process that `killed` kills: applies and checkpoints
/// for ever, and says how far it is.
#[test]
fn child() {
    let Ok(dir) = std::env::var("DFSD_REGRESS_DIR") else {
        return;
    };
    let mut node = Node::open(Path::new(&dir));
    let checkpoint = Arc::new(Checkpoint::start(node.store.clone()).unwrap());
    let at = node.end();
    println!("at {at}");
    node.rt.spawn(async move {
        while checkpoint.request().await {
            tokio::task::yield_now().await;
        }
    });
    for at in at.. {
        node.run(vec![random_entry(9, at)]);
        println!("at {}", at + 1);
    }
}

/// That process; it does not outlive its owner.
struct Victim(std::process::Child);

impl Victim {
    fn spawn(dir: &Path) -> Victim {
        let child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env("DFSD_REGRESS_DIR", dir)
            .stdout(Stdio::piped())
            .spawn();
        Victim(child.unwrap())
    }

    /// Lets it apply up to this index.
    fn wait(&mut self, want: u64) {
        for line in BufReader::new(self.0.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let at = line.rsplit("at ").next().and_then(|n| n.parse().ok());
            if at.is_some_and(|at: u64| at >= want) {
                return;
            }
        }
        panic!("ended before it was at {want}");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn killed() {
    let dir = Dir::new("sm");
    let mut r = Random::new(9);
    let mut want = 0;
    for _ in 0..5 {
        want += 20 + r.below(100);
        let mut victim = Victim::spawn(&dir.0);
        victim.wait(want);
        drop(victim);
        let mut node = Node::open(&dir.0);
        assert!(node.end() >= want);
        want = node.end();
    }
    let mut node = Node::open(&dir.0);
    let (_clean_dir, clean) = clean(9, node.end());
    assert_same(&dir.0, &node, &clean);
}

#[test]
fn removed_files_go_after_the_checkpoint() {
    let dir = Dir::new("sm");
    let mut node = Node::open(&dir.0);
    node.run(head());
    let ino = node.create("f");
    node.op(write(ino, WriteAt::End), &[1; 5000]).unwrap();
    node.checkpoint();
    node.op(unlink("f"), b"").unwrap();
    let release = Op::Release { inodes: vec![ino] };
    node.op(release, b"").unwrap();
    assert!(inode::getattr(&node.store.meta().read(), ino).is_err());
    assert!(backing_files(&dir.0).contains_key(&ino.0));
    // Not with a crash before the checkpoint either.
    drop(node);
    let node = Node::open(&dir.0);
    assert!(backing_files(&dir.0).contains_key(&ino.0));
    node.checkpoint();
    assert!(backing_files(&dir.0).is_empty());
    // A crash between commit and unlink leaves the file to the next one.
    let path = dir.0.join(format!("data/{:02x}/{:x}", ino.0 & 0xff, ino.0));
    fs::write(&path, b"left").unwrap();
    drop(node);
    let mut node = Node::open(&dir.0);
    node.create("g");
    node.checkpoint();
    assert!(!path.exists());
    // And the one after that forgets it.
    node.create("h");
    node.checkpoint();
    drop(node);
    fs::write(&path, b"left").unwrap();
    let mut node = Node::open(&dir.0);
    node.create("i");
    node.checkpoint();
    assert!(path.exists());
}

#[test]
fn size_is_never_seen_before_the_bytes() {
    let dir = Dir::new("sm");
    let mut node = Node::open(&dir.0);
    node.run(head());
    let ino = node.create("f");
    let stop = AtomicBool::new(false);
    let reads = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let store = node.store.clone();
        let (stop, reads) = (&stop, &reads);
        scope.spawn(move || {
            let mut last = 0;
            while !stop.load(Ordering::Relaxed) {
                let contents = inode::contents(&store.meta().read(), ino).unwrap();
                let bytes = match contents {
                    Contents::Inline(bytes) => bytes,
                    Contents::Backing { size, .. } => {
                        let from = size.saturating_sub(3 << 20);
                        let len = (size - from) as usize;
                        let bytes = store.data().read(ino, from, len).unwrap();
                        assert_eq!(bytes.len(), len);
                        assert!(size >= last);
                        last = size;
                        bytes
                    }
                    other => panic!("{other:?}"),
                };
                assert!(bytes == vec![0xa5; bytes.len()]);
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        for i in 0..1000 {
            if i > 40 && reads.load(Ordering::Relaxed) > 40 {
                break;
            }
            let len = if i % 3 == 0 { 700 } else { IO_MAX };
            node.op(write(ino, WriteAt::End), &vec![0xa5; len]).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn checkpoint_is_the_snapshot() {
    let dir = Dir::new("sm");
    let mut node = Node::open(&dir.0);
    let none = node.rt.block_on(node.sm.get_current_snapshot()).unwrap();
    assert!(none.is_none());
    node.run(head());
    let checkpoints = node.store.checkpoints();
    node.checkpoint();
    assert_eq!(checkpoints.borrow().index(), Some(SESSION));
    let mut builder = node.rt.block_on(node.sm.get_snapshot_builder());
    node.create("f");
    node.checkpoint();
    let old = node.rt.block_on(builder.build_snapshot()).unwrap();
    assert_eq!(old.meta.last_log_id, Some(log_id(SESSION)));
    let new = node.rt.block_on(node.sm.get_current_snapshot()).unwrap();
    let new = new.unwrap();
    assert_eq!(new.meta.last_log_id, Some(log_id(FIRST)));
    assert_eq!(new.meta.last_membership.log_id(), &Some(log_id(0)));
    let install = node.sm.install_snapshot(&new.meta, new.snapshot);
    assert!(node.rt.block_on(install).is_err());
    // An entry that is not the next one is never applied.
    let skip = Entry::new(log_id(FIRST + 2), EntryPayload::Blank);
    let skip = node.sm.apply(stream::iter(vec![Ok((skip, None))]));
    let flushed = async { tokio::time::timeout(Duration::from_millis(1), skip).await };
    assert!(!matches!(node.rt.block_on(flushed), Ok(Ok(()))));
}

#[test]
fn foreign_directories() {
    let refused = |dir: &Path, text: &str| match open(dir) {
        Ok(_) => panic!("opened, want {text}"),
        Err(e) => {
            let got = e.to_string();
            assert_eq!(got, format!("{}{text}", dir.display()));
        }
    };
    let dir = Dir::new("sm");
    let missing = dir.0.join("missing");
    refused(&missing, ": No such file or directory (os error 2)");
    fs::write(dir.0.join("precious"), b"").unwrap();
    refused(&dir.0, ": not empty and not a dfsd data directory");
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1);
    fs::remove_file(dir.0.join("precious")).unwrap();

    // A first start that was interrupted.
    fs::create_dir(dir.0.join("lost+found")).unwrap();
    fs::write(dir.0.join("identity.new"), b"dfsd da").unwrap();
    fs::create_dir(dir.0.join("wal")).unwrap();
    fs::write(dir.0.join("wal/half"), b"").unwrap();
    let store = open(&dir.0).unwrap();
    assert!(!dir.0.join("wal/half").exists() && !dir.0.join("identity.new").exists());
    refused(&dir.0, ": in use by another raftd");
    drop(store);

    drop(open(&dir.0).unwrap());
    match Store::open(&dir.0, "other", ME, MAP) {
        Err(StoreError::Cluster(_, name)) => assert_eq!(name, "test"),
        _ => panic!("opened"),
    }
    match Store::open(&dir.0, "test", NodeId(2), MAP) {
        Err(StoreError::Node(_, node)) => assert_eq!(node, ME),
        _ => panic!("opened"),
    }
    let identity = dir.0.join("identity");
    let text = fs::read_to_string(&identity).unwrap();
    let (head, tail) = text.split_once("store ").unwrap();
    assert_eq!(head, "dfsd data directory\nformat 5\nnode 1\n");
    let (id, tail) = tail.split_once('\n').unwrap();
    assert!(id.len() == 16 && u64::from_str_radix(id, 16).unwrap() != 0);
    assert_eq!(tail, "cluster test\n");
    fs::write(&identity, text.replace("format 5", "format 6")).unwrap();
    refused(&dir.0, ": format 6, need format 5");
    fs::write(&identity, text.replace(id, "0000000000000000")).unwrap();
    refused(&dir.0, "/identity: damaged");
    let garbage = [
        &b""[..],
        b"\xff\xfe",
        b"dfsd data directory\nformat x\n",
        &[b'a'; 9000],
    ];
    for garbage in garbage {
        fs::write(&identity, garbage).unwrap();
        refused(&dir.0, "/identity: damaged");
    }
}

/// Takes room until it is dropped.
struct Guest(PathBuf);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A store whose data is on a disk of 16 MiB: that and the node's directory.
fn small_disk() -> Option<(Dir, PathBuf, Tmpfs)> {
    let dir = Dir::new("sm");
    drop(open(&dir.0).unwrap());
    let data = dir.0.join("data");
    for sub in 0..256 {
        fs::remove_dir(data.join(format!("{sub:02x}"))).unwrap();
    }
    let Some(tmpfs) = Tmpfs::mount(data.clone(), "16m") else {
        eprintln!("SKIPPED: cannot mount a tmpfs");
        return None;
    };
    Data::create(&data).unwrap();
    Some((dir, data, tmpfs))
}

#[test]
fn full_disk_stops_apply_until_there_is_room() {
    const MIB: u64 = 1 << 20;
    let Some((dir, data, _tmpfs)) = small_disk() else {
        return;
    };
    fs::write(data.join("guest"), vec![0; 8 << 20]).unwrap();

    let mut node = Node::open(&dir.0);
    node.run(head());
    let ino = node.create("f");
    node.op(write(ino, WriteAt::End), &[1; IO_MAX]).unwrap();
    let mut entries = Vec::new();
    let from = node.end();
    for n in 0..10u64 {
        let at = WriteAt::Offset((n + 1) * MIB);
        entries.push(normal(from + n, write(ino, at), &[1; IO_MAX]));
    }
    node.append(entries);
    let store = node.store.clone();
    let guest = Guest(data.join("guest"));
    let reader = std::thread::spawn(move || {
        let _guest = guest;
        wait_until("alarm", || store.alarm().is_some());
        let alarm = store.alarm().unwrap();
        assert!(alarm.contains(&format!("inode {ino}: ")), "{alarm}");
        // Readers go on, and see no size without its bytes.
        let attr = inode::getattr(&store.meta().read(), ino).unwrap();
        let file = fs::File::from(store.data().open_read(ino).unwrap());
        assert!(file.metadata().unwrap().len() >= attr.size);
        assert!(attr.size >= MIB && attr.size < 11 * MIB);
        // Half an entry is never checkpointed, and does not hold up the end.
        let before = store.checkpointed().index();
        let checkpoint = Checkpoint::start(store.clone()).unwrap();
        let rt = tokio::runtime::Builder::new_current_thread().build();
        assert!(!rt.unwrap().block_on(checkpoint.request()));
        checkpoint.shutdown();
        assert_eq!(store.checkpointed().index(), before);
        assert!(store.alarm().is_some());
    });
    node.apply(from);
    reader.join().unwrap();
    assert_eq!(node.store.alarm(), None);
    assert!(node.read(ino) == vec![1; 11 << 20]);
    let seen: Vec<u64> = node.seen.lock().unwrap().iter().map(|a| a.index).collect();
    assert_eq!(seen, (from..from + 10).collect::<Vec<_>>());
    node.checkpoint();
    drop(node);
}

/// What a file had reserved, and has given back, others have since: a replay
/// must not stand still for it.
#[test]
fn replay_reserves_what_there_is() {
    const MIB: u64 = 1 << 20;
    let Some((dir, data, _tmpfs)) = small_disk() else {
        return;
    };
    let mut node = Node::open(&dir.0);
    node.run(head());
    let (f, g) = (node.create("f"), node.create("g"));
    let reserve = |ino, len| Op::Fallocate {
        ino,
        what: Fallocate {
            how: FallocateHow::Reserve,
            offset: 0,
            len,
            keep_size: false,
            kill_priv: false,
        },
    };
    let size = |ino, size| Op::Setattr {
        ino,
        set: SetAttr {
            size: Some(size),
            ..SetAttr::default()
        },
        check: Check::Kernel,
    };
    node.op(write(f, WriteAt::End), &[1; 5000]).unwrap();
    node.checkpoint();
    node.op(reserve(f, 10 * MIB), b"").unwrap();
    node.op(size(f, 100), b"").unwrap();
    node.op(reserve(g, 10 * MIB), b"").unwrap();
    node.op(write(g, WriteAt::Offset(9 * MIB)), &[2; 5000])
        .unwrap();
    let applied = node.applied();
    let on_disk = || {
        use std::os::unix::fs::MetadataExt;
        let path = data.join(format!("{:02x}/{:x}", g.0 & 0xff, g.0));
        fs::metadata(path).unwrap().blocks() * 512
    };
    assert_eq!(on_disk(), 10 * MIB);
    drop(node);

    let mut node = Node::open(&dir.0);
    assert_eq!(node.applied(), applied);
    assert_eq!(node.store.alarm(), None);
    assert_eq!(on_disk(), 10 * MIB);
    assert!(node.read(f) == [1; 100]);
    let g = node.read(g);
    let (zeros, written) = g.split_at(9 * MIB as usize);
    assert!(zeros.iter().all(|b| *b == 0));
    assert_eq!(written[..5000], [2; 5000]);
    assert_eq!(g.len() as u64, 10 * MIB);
}

#[test]
fn full_disk_holds_up_a_checkpoint() {
    let dir = Dir::new("sm");
    let Some(_tmpfs) = Tmpfs::mount(dir.0.clone(), "32m") else {
        eprintln!("SKIPPED: cannot mount a tmpfs");
        return;
    };
    let mut node = Node::open(&dir.0);
    node.run(head());
    for n in 0..3000 {
        node.create(&format!("{n:0200}"));
    }
    let before = node.store.checkpointed().index();
    let guest = Guest(dir.0.join("guest"));
    let mut file = fs::File::create(&guest.0).unwrap();
    for size in [1 << 16, 1 << 12] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    let store = node.store.clone();
    let room = std::thread::spawn(move || {
        wait_until("alarm", || store.alarm().is_some());
        let alarm = store.alarm().unwrap();
        assert!(alarm.starts_with("checkpoint: metadata: "), "{alarm}");
        assert_eq!(store.checkpointed().index(), before);
        drop((guest, file));
    });
    node.checkpoint();
    room.join().unwrap();
    assert_eq!(node.store.alarm(), None);
    assert!(node.store.checkpointed().index() > before);
    drop(node);
    let node = Node::open(&dir.0);
    let names = dirent::readdir(
        &node.store.meta().read(),
        InodeNo::ROOT,
        Cookie(0),
        1 << 30,
        false,
    );
    assert_eq!(names.unwrap().0.len(), 3000 + 2);
}

/// The network of a cluster of one.
struct Alone;

impl RaftNetworkFactory<TypeConfig> for Alone {
    type Network = Alone;

    async fn new_client(&mut self, _: NodeId, _: &PeerNode) -> Alone {
        Alone
    }
}

fn alone<T>() -> Result<T, RPCError<TypeConfig>> {
    Err(Unreachable::new(&std::io::Error::other("alone")).into())
}

impl RaftNetworkV2<TypeConfig> for Alone {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        _: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        alone()
    }

    async fn vote(
        &mut self,
        _: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        alone()
    }

    async fn full_snapshot(
        &mut self,
        _: Vote,
        _: SnapshotOf<TypeConfig, SnapshotData>,
        _: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(Unreachable::new(&std::io::Error::other("alone")).into())
    }
}

async fn raft(store: &Arc<Store>) -> Raft {
    let config = raftd::raft::checked(raftd::raft::config("test")).unwrap();
    let sm = StateMachine::new(store.clone(), Box::new(|_| {}));
    let log = store.log().clone();
    let raft = Raft::new(ME, config, Alone, log, sm).await.unwrap();
    if !raft.is_initialized().await.unwrap() {
        let members = BTreeMap::from([(ME, PeerNode)]);
        raft.initialize(members).await.unwrap();
    }
    let wait = raft.wait(Some(PATIENCE));
    wait.current_leader(ME, "leader").await.unwrap();
    raft
}

fn command(op: Op, bytes: &[u8]) -> Command {
    Command {
        origin: None,
        time: Time::default(),
        op,
        payload: match bytes {
            [] => Payload::none(),
            bytes => Payload::new(Bytes::copy_from_slice(bytes)),
        },
    }
}

/// What the owner of the Raft does after a checkpoint, as checkpoint.rs says.
#[test]
fn openraft_purges_behind_the_checkpoint() {
    let dir = Dir::new("sm");
    let ino = InodeNo(2);
    let mut upto = 0;
    for round in 0..3 {
        let rt = Runtime::new().unwrap();
        let store = Arc::new(open(&dir.0).unwrap());
        rt.block_on(async {
            let raft = raft(&store).await;
            let purged = raft.metrics().borrow_watched().purged;
            assert_eq!(purged.map_or(0, |id| id.index), upto);
            let checkpoint = Checkpoint::start(store.clone()).unwrap();
            raft.client_write(command(create("f"), b"")).await.unwrap();
            for n in 0..30 {
                let at = WriteAt::Offset(n * 5000);
                let cmd = command(write(ino, at), &[round as u8 + 1; 5000]);
                raft.client_write(cmd).await.unwrap();
            }
            assert!(checkpoint.request().await);
            let index = store.checkpointed().index().unwrap();
            raft.trigger().snapshot().await.unwrap();
            let seen = |m: &openraft::RaftMetrics<TypeConfig>| {
                m.snapshot.is_some_and(|id| id.index >= index)
            };
            let wait = raft.wait(Some(PATIENCE));
            wait.metrics(seen, "snapshot").await.unwrap();
            upto = index - 10;
            raft.trigger().purge_log(upto).await.unwrap();
            let wait = raft.wait(Some(PATIENCE));
            let purged =
                |m: &openraft::RaftMetrics<TypeConfig>| m.purged.is_some_and(|id| id.index == upto);
            wait.metrics(purged, "purged").await.unwrap();
            // Some more, for the next start to replay.
            tokio::task::block_in_place(|| checkpoint.shutdown());
            let cmd = command(write(ino, WriteAt::Offset(0)), &[round as u8 + 10; 5000]);
            raft.client_write(cmd).await.unwrap();
            raft.shutdown().await.unwrap();
        });
        let got = store.data().read(ino, 0, 1 << 20).unwrap();
        assert_eq!(got.len(), 150_000);
        assert!(got[..5000].iter().all(|b| *b == round as u8 + 10));
        assert!(got[5000..].iter().all(|b| *b == round as u8 + 1));
    }
}
