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

//! The store of one node: its log, its metadata, the contents of its files.
//! Runs in raftd, which alone may touch the data directory.  It never decides
//! what the tree looks like; the log does, by fs/apply.rs.
//!
//! ```text
//! DIR/          mode and owner are the parent's affair
//!   identity    whose directory this is; made last, so that what stands in a
//!               directory without it was never in use
//!   lock        flock(2) of the raftd that uses the directory; empty
//!   runs        how often raftd has been started on it, decimal
//!   peers       the peers it has met, and their stores             (met.rs)
//!   wal/        segments of the log                              (wal.rs)
//!   meta/       LMDB: data.mdb, lock.mdb                         (meta.rs)
//!   data/XX/N   contents of inode N, 256 directories             (data.rs)
//!   tmp/        /tmp of the chroot: OpenBSD keeps LMDB's semaphores there
//!
//! identity, a text file:
//!   dfsd data directory
//!   format F    FORMAT, decimal
//!   node N      id of the node, decimal
//!   store ID    random, 16 hexadecimal digits: another one for each directory
//!   cluster C   name of the cluster, to the end of the line
//! ```
//!
//! Formats: 2 added `store` and `peers`.
//!
//! While the directory is made, the same text stands in `identity.new`.  What
//! an interrupted first start has left is removed by the next.
//!
//! How they work together: an entry is on disk in `wal` before it is applied;
//! apply changes `meta` in memory and `data` in the page cache; a checkpoint
//! brings both to the disk, up to one index C.  After a crash `meta` is at C,
//! `data` at C or anywhere later, and the log from C on makes both whole.

pub mod checkpoint;
pub mod data;
pub mod log_store;
pub mod met;
pub mod meta;
pub mod state_machine;
pub mod wal;

use crate::fs;
use checkpoint::Asked;
use common::fs::NodeId;
use common::sys::random::random_u64;
use data::Data;
use log_store::LogStore;
use met::{Met, StoreId};
use meta::{Meta, MetaError};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use state_machine::{At, Position};
use std::fmt;
use std::fs::{create_dir, read_dir, read_to_string, remove_dir_all, rename, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;
use wal::WalError;

/// Version of the directory; moves when an old raftd could not use it.
const FORMAT: u32 = 5;
const TITLE: &str = "dfsd data directory";
const IDENTITY: &str = "identity";
const IDENTITY_NEW: &str = "identity.new";
const LOCK: &str = "lock";
const RUNS: &str = "runs";
const RUNS_NEW: &str = "runs.new";
const PARTS: [&str; 4] = ["wal", "meta", "data", "tmp"];
/// Longest identity file that is looked at.
const IDENTITY_MAX: u64 = 4096;

/// Why a data directory cannot be used.
#[non_exhaustive]
#[derive(Debug)]
pub enum StoreError {
    Io(PathBuf, io::Error),
    InUse(PathBuf),
    /// It is not empty, and not a data directory.
    Foreign(PathBuf),
    /// The identity file is not one.
    Damaged(PathBuf),
    Format(PathBuf, u32),
    Cluster(PathBuf, String),
    Node(PathBuf, NodeId),
    /// What this node has promised and acknowledged was in it.
    LogGone(PathBuf),
    Meta(MetaError),
    Log(WalError),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Io(path, e) => write!(f, "{}: {e}", path.display()),
            StoreError::InUse(dir) => write!(f, "{}: in use by another raftd", dir.display()),
            StoreError::Foreign(dir) => {
                write!(
                    f,
                    "{}: not empty and not a dfsd data directory",
                    dir.display()
                )
            }
            StoreError::Damaged(path) => write!(f, "{}: damaged", path.display()),
            StoreError::Format(dir, found) => {
                write!(f, "{}: format {found}, need format {FORMAT}", dir.display())
            }
            StoreError::Cluster(dir, found) => {
                write!(f, "{}: belongs to cluster \"{found}\"", dir.display())
            }
            StoreError::Node(dir, found) => write!(f, "{}: belongs to node {found}", dir.display()),
            StoreError::LogGone(path) => write!(f, "{}: the log is gone", path.display()),
            StoreError::Meta(e) => e.fmt(f),
            StoreError::Log(e) => write!(f, "log: {e}"),
        }
    }
}

impl std::error::Error for StoreError {}

impl From<MetaError> for StoreError {
    fn from(e: MetaError) -> StoreError {
        StoreError::Meta(e)
    }
}

/// For map_err: which path it was.
fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError + '_ {
    move |e| StoreError::Io(path.to_owned(), e)
}

pub struct Store {
    dir: PathBuf,
    id: StoreId,
    met: Met,
    meta: Meta,
    /// The last entry of which the metadata show anything; moved before they do.
    shown: AtomicU64,
    data: Data,
    log: LogStore,
    at: tokio::sync::Mutex<At>,
    asked: Asked,
    published: watch::Sender<Position>,
    checkpoints: AtomicU64,
    /// A checkpoint is bringing files to the disk.
    syncing: AtomicBool,
    alarm: Mutex<Option<String>>,
    /// Held as long as the store is used.
    _lock: Flock<File>,
}

impl Store {
    /// Opens the data directory of this node, and makes it if it is empty.
    /// Starts nothing but the log's own threads.
    pub fn open(
        dir: &Path,
        cluster: &str,
        node: NodeId,
        map_size: usize,
    ) -> Result<Store, StoreError> {
        Store::open_with(dir, cluster, node, map_size, &log_store::Options::default())
    }

    /// The same with a log of other sizes, for tests.
    pub fn open_with(
        dir: &Path,
        cluster: &str,
        node: NodeId,
        map_size: usize,
        log: &log_store::Options,
    ) -> Result<Store, StoreError> {
        let (lock, id) = claim(dir, cluster, node)?;
        let met = Met::open(dir).map_err(at(&dir.join("peers")))?;
        let meta = Meta::open(&dir.join("meta"), map_size)?;
        // On a store that is not empty it does nothing.
        fs::apply::init(&mut meta.write())?;
        let position = Position::load(&meta)?;
        let data = dir.join("data");
        let data = Data::open(&data).map_err(at(&data))?;
        data.bury(checkpoint::dead(&meta)?);
        let log = LogStore::open_with(&dir.join("wal"), log).map_err(StoreError::Log)?;
        let empty = log.recovered().vote.is_none() && log.recovered().last.is_none();
        if position.last_applied.is_some() && empty {
            return Err(StoreError::LogGone(dir.join("wal")));
        }
        Ok(Store {
            dir: dir.to_owned(),
            id,
            met,
            meta,
            shown: AtomicU64::new(0),
            data,
            log,
            published: watch::Sender::new(position.clone()),
            at: tokio::sync::Mutex::new(At {
                position,
                unfinished: false,
            }),
            asked: Asked::default(),
            checkpoints: AtomicU64::new(0),
            syncing: AtomicBool::new(false),
            alarm: Mutex::default(),
            _lock: lock,
        })
    }

    /// Counts the runs of raftd on this directory, this one too, durably: the
    /// log tells a session from an older one of this node by that.
    pub fn next_run(&self) -> io::Result<u64> {
        let (path, new) = (self.dir.join(RUNS), self.dir.join(RUNS_NEW));
        let last = match read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(io::Error::other)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(e) => return Err(e),
        };
        let run: u64 = last + 1;
        let mut file = File::create(&new)?;
        file.write_all(format!("{run}\n").as_bytes())?;
        file.sync_all()?;
        rename(&new, &path)?;
        File::open(&self.dir)?.sync_all()?;
        Ok(run)
    }

    pub fn id(&self) -> StoreId {
        self.id
    }

    /// The peers that this node has met.
    pub fn met(&self) -> &Met {
        &self.met
    }

    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    pub fn data(&self) -> &Data {
        &self.data
    }

    pub fn log(&self) -> &LogStore {
        &self.log
    }

    /// Keeps apply between two entries, where metadata and disk agree; None
    /// while it stands in the middle of one.
    pub async fn between_entries(&self) -> Option<impl Drop + '_> {
        let at = self.at.lock().await;
        (!at.unfinished).then_some(at)
    }

    /// The last committed checkpoint.
    pub fn checkpointed(&self) -> Position {
        self.published.borrow().clone()
    }

    /// The same, to wait for the next one.
    pub fn checkpoints(&self) -> watch::Receiver<Position> {
        self.published.subscribe()
    }

    /// Has one made soon, without waiting for it.
    pub fn hurry_checkpoint(&self) {
        self.asked.hurry();
    }

    /// Checkpoints made since the start.
    pub fn checkpoint_count(&self) -> u64 {
        self.checkpoints.load(Ordering::Relaxed)
    }

    fn is_syncing(&self) -> bool {
        self.syncing.load(Ordering::Relaxed)
    }

    fn publish(&self, position: Position) {
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.published.send_replace(position);
    }

    /// The last entry of which a reader of the metadata may have seen anything,
    /// when they have been read.
    pub fn shown(&self) -> u64 {
        self.shown.load(Ordering::SeqCst)
    }

    /// Every entry up to there is agreed, and in this node's log or tree on its
    /// disk: apply waits for that before it begins.
    pub fn agreed(&self) -> u64 {
        self.shown().max(self.checkpointed().index().unwrap_or(0))
    }

    /// Why apply stands still, if this node's disk makes it.
    pub fn alarm(&self) -> Option<String> {
        let alarm = self.alarm.lock().unwrap_or_else(PoisonError::into_inner);
        alarm.clone()
    }

    fn set_alarm(&self, text: Option<String>) {
        *self.alarm.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// An entry that took so much of the log has been applied.
    fn count(&self, bytes: u64) {
        self.asked.count(bytes, self.meta.overlay_bytes());
    }
}

/// Locks a directory that is ours, or becomes so now.
fn claim(dir: &Path, cluster: &str, node: NodeId) -> Result<(Flock<File>, StoreId), StoreError> {
    // Nothing is put into a directory of others, not even a lock.
    names(dir)?;
    let lock = lock(dir)?;
    let names = names(dir)?;
    let path = dir.join(IDENTITY);
    if !names.iter().any(|n| n == IDENTITY) {
        make(dir, cluster, node)?;
    }
    let id = check(dir, &path, cluster, node)?;
    Ok((lock, id))
}

/// What is in the directory, if it is a data directory or can become one.
fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    for entry in read_dir(dir).map_err(at(dir))? {
        let entry = entry.map_err(at(dir))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    let ours = [IDENTITY, IDENTITY_NEW]
        .iter()
        .any(|i| names.iter().any(|n| n == i));
    // Some file systems put a directory of their own into their root.
    let empty = names.iter().all(|n| n == LOCK || n == "lost+found");
    match ours || empty {
        true => Ok(names),
        false => Err(StoreError::Foreign(dir.to_owned())),
    }
}

fn lock(dir: &Path) -> Result<Flock<File>, StoreError> {
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    let file = options.open(&path).map_err(at(&path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => Err(StoreError::InUse(dir.to_owned())),
        Err((_, e)) => Err(StoreError::Io(path, e.into())),
    }
}

/// Makes the directory, and removes what an attempt before has left.
fn make(dir: &Path, cluster: &str, node: NodeId) -> Result<(), StoreError> {
    let new = dir.join(IDENTITY_NEW);
    let id = StoreId(random_u64().map_err(at(&new))?.max(1));
    let text = format!("{TITLE}\nformat {FORMAT}\nnode {node}\nstore {id}\ncluster {cluster}\n");
    let mut file = File::create(&new).map_err(at(&new))?;
    file.write_all(text.as_bytes()).map_err(at(&new))?;
    file.sync_all().map_err(at(&new))?;
    sync_dir(dir)?;
    for part in PARTS {
        let path = dir.join(part);
        match remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(StoreError::Io(path, e)),
            _ => create_dir(&path).map_err(at(&path))?,
        }
    }
    let data = dir.join("data");
    Data::create(&data).map_err(at(&data))?;
    sync_dir(dir)?;
    rename(&new, dir.join(IDENTITY)).map_err(at(&new))?;
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(at(dir))
}

fn check(dir: &Path, path: &Path, cluster: &str, node: NodeId) -> Result<StoreId, StoreError> {
    let mut text = String::new();
    let file = File::open(path).map_err(at(path))?;
    match file.take(IDENTITY_MAX).read_to_string(&mut text) {
        Err(e) if e.kind() != io::ErrorKind::InvalidData => return Err(at(path)(e)),
        _ => {}
    }
    let damaged = || StoreError::Damaged(path.to_owned());
    let mut lines = text.lines();
    if lines.next() != Some(TITLE) {
        return Err(damaged());
    }
    let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
    let format = field("format")
        .and_then(|f| f.parse().ok())
        .ok_or_else(damaged)?;
    if format != FORMAT {
        return Err(StoreError::Format(dir.to_owned(), format));
    }
    let its_node = field("node")
        .and_then(|n| n.parse().ok())
        .ok_or_else(damaged)?;
    let id = field("store")
        .and_then(StoreId::parse)
        .ok_or_else(damaged)?;
    let its_cluster = field("cluster").ok_or_else(damaged)?;
    if its_cluster != cluster {
        return Err(StoreError::Cluster(dir.to_owned(), its_cluster.to_owned()));
    }
    if its_node != node.0 {
        return Err(StoreError::Node(dir.to_owned(), NodeId(its_node)));
    }
    Ok(id)
}
