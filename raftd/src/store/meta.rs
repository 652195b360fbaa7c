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

//! The metadata store: an ordered overlay in memory above one LMDB database.
//! Runs in raftd.  Apply writes the overlay; a checkpoint freezes it and
//! commits the frozen half to LMDB while apply and readers go on.  The only
//! file that names heed.  LMDB is never in the acknowledge path, and nothing
//! here knows what the keys mean but for those of this node:
//!
//! ```text
//! key            value
//! !format        FORMAT, 4 bytes big-endian; written when the store is made
//! !last_applied  log id of the last entry in the store  (state_machine.rs)
//! !membership    the last membership of the log         (state_machine.rs)
//! !dead          backing files to unlink                (checkpoint.rs)
//! ```
//!
//! All other keys belong to the replicated file system (fs/inode.rs has the
//! table) and are alike on all nodes at the same applied index.
//!
//! A read looks at active, frozen and LMDB in this order:
//!
//! ```text
//!            writes               freeze                commit_frozen
//!   apply ---------->  active  ---------->  frozen  ------------------>  LMDB
//! ```
//!
//! Whoever reads holds the lock shared, and begins its LMDB transaction under
//! it.  `frozen` is dropped under the exclusive lock, after the commit.  So a
//! reader has either the old LMDB with frozen above it, or the new one with
//! or without; each is the same contents.

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, MdbError, RoTxn, WithoutTls};
use serde::de::DeserializeOwned;
use serde::Serialize;
use std::cell::OnceCell;
use std::collections::{btree_map, BTreeMap};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::iter::Peekable;
use std::ops::{Bound, Deref};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Keys of this node alone begin with `!`, which no other does.
const FORMAT_KEY: &[u8] = b"!format";
pub const LAST_APPLIED: &[u8] = b"!last_applied";
pub const MEMBERSHIP: &[u8] = b"!membership";

/// Version of keys and values; moves when an old raftd could not read them.
const FORMAT: u32 = 1;

/// Where a map does not show what was written to the file, LMDB must write
/// through the map too, or it would not read what it wrote.  Elsewhere such a
/// map is forbidden, since each commit would flush all of it.
const WRITE_MAP: bool = !common::sys::file::MAP_SHOWS_WRITES;

/// Size of the map unless the caller knows better.  Where the file grows on
/// demand this is only a bound; a writable map is allocated in full.
pub const MAP_SIZE: usize = if WRITE_MAP || cfg!(target_pointer_width = "32") {
    1 << 30
} else {
    (64u64 << 30) as usize
};

/// Threads and snapshots that read at the same time.
const MAX_READERS: u32 = 1024;
/// LMDB read transactions kept for the next reader.
const MAX_IDLE: usize = 16;
/// Pages that a checkpoint may need before it gives others back.
const COPIES: u64 = 64 << 20;
/// What the overlay may hold while the disk is full.
const WAITING: u64 = 16 << 20;
/// What an entry of the overlay costs beside its key and value.
const ENTRY_COST: usize = 64;

/// What went wrong below the file system.  Fatal to raftd: a half applied
/// entry may be left in the overlay.
#[non_exhaustive]
#[derive(Debug)]
pub enum MetaError {
    Lmdb(heed::Error),
    /// The map cannot take this checkpoint.
    Full {
        map_size: usize,
    },
    /// The store is of another version.
    Format {
        found: u32,
    },
    /// A record cannot be, named by its kind.
    Corrupt(&'static str),
    Io(io::Error),
}

impl MetaError {
    /// Whether the disk has no room for it.  LMDB says EIO when it could write
    /// a part; `full` is what the disk says then.
    pub fn is_full_disk(&self, full: bool) -> bool {
        let MetaError::Lmdb(heed::Error::Io(e)) = self else {
            return false;
        };
        match e.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => true,
            Some(libc::EIO) => full,
            _ => false,
        }
    }
}

impl fmt::Display for MetaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetaError::Lmdb(e) => write!(f, "metadata: {e}"),
            MetaError::Full { map_size } => {
                write!(f, "metadata: map of {} MiB is full", map_size >> 20)
            }
            MetaError::Format { found } => {
                write!(f, "metadata: format {found}, need format {FORMAT}")
            }
            MetaError::Corrupt(what) => write!(f, "metadata: corrupt {what}"),
            MetaError::Io(e) => write!(f, "metadata: {e}"),
        }
    }
}

impl std::error::Error for MetaError {}

impl From<heed::Error> for MetaError {
    fn from(e: heed::Error) -> MetaError {
        MetaError::Lmdb(e)
    }
}

impl From<io::Error> for MetaError {
    fn from(e: io::Error) -> MetaError {
        MetaError::Io(e)
    }
}

/// Decodes a whole value; what is left over is corruption as well.
pub fn decode<T: DeserializeOwned>(value: &[u8], what: &'static str) -> Result<T, MetaError> {
    match postcard::take_from_bytes(value) {
        Ok((v, [])) => Ok(v),
        _ => Err(MetaError::Corrupt(what)),
    }
}

pub fn encode<T: Serialize>(value: &T, what: &'static str) -> Result<Vec<u8>, MetaError> {
    postcard::to_stdvec(value).map_err(|_| MetaError::Corrupt(what))
}

type Map = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Changes above LMDB; None is a deleted key.
#[derive(Default)]
struct Overlay {
    map: Map,
    bytes: usize,
}

impl Overlay {
    fn set(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        let new = value.as_ref().map_or(0, Vec::len);
        if let Some(slot) = self.map.get_mut(key) {
            self.bytes -= slot.as_ref().map_or(0, Vec::len);
            *slot = value;
        } else {
            self.bytes += key.len() + ENTRY_COST;
            self.map.insert(key.to_vec(), value);
        }
        self.bytes += new;
    }

    fn forget(&mut self, key: &[u8]) {
        if let Some(value) = self.map.remove(key) {
            self.bytes -= key.len() + ENTRY_COST + value.map_or(0, |v| v.len());
        }
    }
}

#[derive(Default)]
struct State {
    active: Overlay,
    frozen: Option<Arc<Overlay>>,
}

/// Bytes for metadata; of free and growth some are needed already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRoom {
    pub free: u64,
    pub growth: u64,
    pub needed: u64,
}

type ReadTxn = RoTxn<'static, WithoutTls>;

/// How the path of the map ends: LMDB has one file in its directory.
pub const MAP_PATH: &str = "/meta/data.mdb";

pub struct Meta {
    state: RwLock<State>,
    /// Bytes of the active overlay, to be read without the lock.
    bytes: AtomicUsize,
    /// Idle read transactions, no older than the last commit but one; they
    /// are taken and given back under the shared lock.
    idle: Mutex<Vec<ReadTxn>>,
    db: Database<'static, Bytes, Bytes>,
    env: Env<WithoutTls>,
    map_size: usize,
}

impl Meta {
    /// Opens the store in a directory, and makes it there if there is none.
    pub fn open(dir: &Path, map_size: usize) -> Result<Meta, MetaError> {
        Meta::open_as(dir, map_size, WRITE_MAP)
    }

    fn open_as(dir: &Path, map_size: usize, write_map: bool) -> Result<Meta, MetaError> {
        let map_size = if write_map {
            preallocate(dir, map_size)?
        } else {
            map_size
        };
        let env = open_env(dir, map_size, write_map)?;
        let txn = env.write_txn()?;
        let db = env
            .create_databases_and_commit(txn, |opener, txn| {
                let db = opener.create_database::<Bytes, Bytes>(txn, None)?;
                check_format(&db, txn)?;
                Ok::<_, MetaError>(CommitOrAbort::<_, MetaError>::Commit(db))
            })?
            .commit()
            .ok_or(MetaError::Corrupt("database"))?;
        Ok(Meta {
            state: RwLock::default(),
            bytes: AtomicUsize::new(0),
            idle: Mutex::default(),
            db,
            env,
            map_size,
        })
    }

    /// A consistent view; apply waits while it lives, so let it be short.
    /// A thread that has one must not ask for another: a writer between the
    /// two would wait for the first and the second for the writer.
    pub fn read(&self) -> Reader<'_> {
        Reader(View::new(self, Hold::Shared(self.shared())))
    }

    /// Exclusive, for apply alone.
    pub fn write(&self) -> Writer<'_> {
        Writer(View::new(self, Hold::Exclusive(self.exclusive())))
    }

    /// What the map can still take: without more of the disk, which is within
    /// its file or waits in the overlay, and by how much the file can grow.  A
    /// checkpoint writes each page that it changes anew, so there must be some
    /// to begin with.
    pub fn room(&self) -> Result<MapRoom, MetaError> {
        let overlay = {
            let state = self.shared();
            let frozen = state.frozen.as_ref().map_or(0, |f| f.bytes);
            state.active.bytes + frozen
        };
        let txn = self.env.read_txn()?;
        let stat = self.db.stat(&txn)?;
        let page = u64::from(stat.page_size);
        let pages = stat.branch_pages + stat.leaf_pages + stat.overflow_pages;
        let used = page * pages as u64;
        let file = page * (self.env.info().last_page_number as u64 + 1);
        let growth = (self.map_size as u64).saturating_sub(file);
        let free = file.saturating_sub(used);
        Ok(MapRoom {
            free: free
                + if WRITE_MAP {
                    growth
                } else {
                    growth.min(WAITING)
                },
            growth: if WRITE_MAP { 0 } else { growth },
            needed: used.min(COPIES) + overlay as u64,
        })
    }

    /// Bytes changed since the last freeze.
    pub fn overlay_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// First step of a checkpoint, between two entries: what is written from
    /// now on belongs to the next one.  False if the last is not committed.
    pub fn freeze(&self) -> bool {
        let mut state = self.exclusive();
        if state.frozen.is_some() {
            return false;
        }
        state.frozen = Some(Arc::new(std::mem::take(&mut state.active)));
        self.bytes.store(0, Ordering::Relaxed);
        true
    }

    /// Second step of a checkpoint: the frozen overlay goes to disk, in one
    /// transaction, while readers and apply go on.  Nothing to do without a
    /// frozen overlay.  After an error the process must end, unless the disk is
    /// full: then nothing has happened, and it can be tried again.
    pub fn commit_frozen(&self) -> Result<(), MetaError> {
        let Some(frozen) = self.shared().frozen.clone() else {
            return Ok(());
        };
        let mut txn = self.env.write_txn()?;
        for (key, value) in &frozen.map {
            match value {
                Some(value) => self.db.put(&mut txn, key, value),
                None => self.db.delete(&mut txn, key).map(|_| ()),
            }
            .map_err(|e| self.commit_error(e))?;
        }
        txn.commit().map_err(|e| self.commit_error(e))?;
        let mut state = self.exclusive();
        // The map is freed below, by the last owner, when the lock is gone.
        state.frozen = None;
        self.idle().clear();
        drop(state);
        drop(frozen);
        Ok(())
    }

    /// Straight from LMDB: the value as of the last checkpoint.
    pub fn get_committed(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        let txn = self.env.read_txn()?;
        Ok(self.db.get(&txn, key)?.map(<[u8]>::to_vec))
    }

    fn commit_error(&self, e: heed::Error) -> MetaError {
        match e {
            heed::Error::Mdb(MdbError::MapFull) => MetaError::Full {
                map_size: self.map_size,
            },
            e => MetaError::Lmdb(e),
        }
    }

    fn shared(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<ReadTxn>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[allow(unsafe_code)]
fn open_env(dir: &Path, map_size: usize, write_map: bool) -> Result<Env<WithoutTls>, MetaError> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(map_size).max_readers(MAX_READERS);
    if write_map {
        // SAFETY: a writable map needs that nobody else writes to the file or
        // to stray addresses of the map; the first is the reason for the lock
        // on the data directory, the second that the rest of raftd is safe.
        unsafe { options.flags(EnvFlags::WRITE_MAP) };
    }
    // SAFETY: the map must not change underneath: the data directory is
    // raftd's own and locked by it, on a local disk, and LMDB locks as well.
    Ok(unsafe { options.open(dir) }?)
}

fn check_format(
    db: &Database<'_, Bytes, Bytes>,
    txn: &mut heed::RwTxn<'_>,
) -> Result<(), MetaError> {
    match db.get(txn, FORMAT_KEY)? {
        None if db.is_empty(txn)? => Ok(db.put(txn, FORMAT_KEY, &FORMAT.to_be_bytes())?),
        None => Err(MetaError::Corrupt("format")),
        Some(found) => match found.try_into().map(u32::from_be_bytes) {
            Ok(FORMAT) => Ok(()),
            Ok(found) => Err(MetaError::Format { found }),
            Err(_) => Err(MetaError::Corrupt("format")),
        },
    }
}

/// Gives all of a writable map real blocks, since a store through a map into
/// a hole of a full file system is SIGBUS.  Answers the size to map.
fn preallocate(dir: &Path, map_size: usize) -> Result<usize, MetaError> {
    const HEAD: usize = 64 << 10;
    let path = dir.join("data.mdb");
    if !path.exists() {
        // LMDB must write its first pages itself; an interrupted attempt is
        // made again from the beginning.
        let new = dir.join("new");
        match fs::remove_dir_all(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
            _ => fs::create_dir(&new)?,
        }
        let env = open_env(&new, HEAD, true)?;
        env.force_sync()?;
        env.prepare_for_closing().wait();
        let file = File::options()
            .read(true)
            .write(true)
            .open(new.join("data.mdb"))?;
        let mut head = Vec::new();
        io::Read::read_to_end(&mut &file, &mut head)?;
        file.write_all_at(&head, 0)?;
        fill(&file, head.len() as u64, map_size as u64)?;
        fs::rename(new.join("data.mdb"), &path)?;
        fs::remove_dir_all(&new)?;
        File::open(dir)?.sync_all()?;
        return Ok(map_size);
    }
    let file = File::options().write(true).open(&path)?;
    let len = file.metadata()?.len();
    fill(&file, len, map_size as u64)?;
    Ok(map_size.max(len as usize))
}

fn fill(file: &File, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut at = from;
    while at < to {
        let n = zeros.len().min((to - at) as usize);
        file.write_all_at(zeros.get(..n).unwrap_or_default(), at)?;
        at += n as u64;
    }
    file.sync_all()
}

enum Hold<'m> {
    Shared(RwLockReadGuard<'m, State>),
    Exclusive(RwLockWriteGuard<'m, State>),
}

/// What readers and writers can both do.  Values are borrowed from where they
/// are, without a copy.
pub struct View<'m> {
    meta: &'m Meta,
    txn: OnceCell<ReadTxn>,
    hold: Hold<'m>,
}

impl<'m> View<'m> {
    fn new(meta: &'m Meta, hold: Hold<'m>) -> View<'m> {
        View {
            meta,
            txn: OnceCell::new(),
            hold,
        }
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<&[u8]>, MetaError> {
        let state = self.state();
        if let Some(value) = state.active.map.get(key) {
            return Ok(value.as_deref());
        }
        if let Some(value) = state.frozen.as_ref().and_then(|f| f.map.get(key)) {
            return Ok(value.as_deref());
        }
        Ok(self.meta.db.get(self.txn()?, key)?)
    }

    /// A value decoded; `what` names it if it cannot be.
    pub fn load<T: DeserializeOwned>(
        &self,
        key: &[u8],
        what: &'static str,
    ) -> Result<Option<T>, MetaError> {
        self.get(key)?.map(|v| decode(v, what)).transpose()
    }

    /// All keys with this prefix from `from` on, in order.
    pub fn range(&self, from: &[u8], prefix: &[u8]) -> Result<Range<'_>, MetaError> {
        let from = from.max(prefix);
        let bounds = (Bound::Included(from), Bound::Unbounded);
        let state = self.state();
        // LMDB knows no empty keys, not even as a bound.
        let lmdb = if from.is_empty() {
            self.meta.db.range(self.txn()?, &(..))?
        } else {
            self.meta.db.range(self.txn()?, &bounds)?
        };
        Ok(Range {
            active: state.active.map.range::<[u8], _>(bounds).peekable(),
            frozen: state
                .frozen
                .as_ref()
                .map(|f| f.map.range::<[u8], _>(bounds).peekable()),
            lmdb: lmdb.peekable(),
            prefix: prefix.to_vec(),
        })
    }

    /// Whether a layer below the active one has the key.
    fn below(&self, key: &[u8]) -> Result<bool, MetaError> {
        if let Some(value) = self.state().frozen.as_ref().and_then(|f| f.map.get(key)) {
            return Ok(value.is_some());
        }
        Ok(self.meta.db.get(self.txn()?, key)?.is_some())
    }

    fn state(&self) -> &State {
        match &self.hold {
            Hold::Shared(state) => state,
            Hold::Exclusive(state) => state,
        }
    }

    fn txn(&self) -> Result<&ReadTxn, MetaError> {
        if let Some(txn) = self.txn.get() {
            return Ok(txn);
        }
        let idle = self.meta.idle().pop();
        let txn = match idle {
            Some(txn) => txn,
            None => self.meta.env.clone().static_read_txn()?,
        };
        Ok(self.txn.get_or_init(|| txn))
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        // The lock is still held, so the transaction cannot be stale.
        if let Some(txn) = self.txn.take() {
            let mut idle = self.meta.idle();
            if idle.len() < MAX_IDLE {
                idle.push(txn);
            }
        }
    }
}

pub struct Reader<'m>(View<'m>);

impl<'m> Deref for Reader<'m> {
    type Target = View<'m>;

    fn deref(&self) -> &View<'m> {
        &self.0
    }
}

pub struct Writer<'m>(View<'m>);

impl<'m> Deref for Writer<'m> {
    type Target = View<'m>;

    fn deref(&self) -> &View<'m> {
        &self.0
    }
}

impl Writer<'_> {
    pub fn put(&mut self, key: &[u8], value: Vec<u8>) {
        self.set(key, Some(value));
    }

    /// What the layers below never knew leaves no trace in the overlay, so
    /// that short lives (replies, temporary files) never reach the disk.
    pub fn delete(&mut self, key: &[u8]) -> Result<(), MetaError> {
        if self.0.below(key)? {
            self.set(key, None);
        } else {
            self.forget(key);
        }
        Ok(())
    }

    /// Encodes and puts.
    pub fn save<T: Serialize>(
        &mut self,
        key: &[u8],
        value: &T,
        what: &'static str,
    ) -> Result<(), MetaError> {
        self.put(key, encode(value, what)?);
        Ok(())
    }

    fn forget(&mut self, key: &[u8]) {
        if let Hold::Exclusive(state) = &mut self.0.hold {
            state.active.forget(key);
            let bytes = state.active.bytes;
            self.0.meta.bytes.store(bytes, Ordering::Relaxed);
        }
    }

    fn set(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        // A Writer is made with the exclusive lock and no other way.
        if let Hold::Exclusive(state) = &mut self.0.hold {
            state.active.set(key, value);
            let bytes = state.active.bytes;
            self.0.meta.bytes.store(bytes, Ordering::Relaxed);
        }
    }
}

/// A key and the value above all others; None is deleted.
type Item<'v> = (&'v [u8], Option<&'v [u8]>);

type Layer<'v> = Peekable<btree_map::Range<'v, Vec<u8>, Option<Vec<u8>>>>;

/// Keys and values of the three layers merged; the upper hides the lower.
pub struct Range<'v> {
    active: Layer<'v>,
    frozen: Option<Layer<'v>>,
    lmdb: Peekable<heed::RoRange<'v, Bytes, Bytes>>,
    prefix: Vec<u8>,
}

impl<'v> Range<'v> {
    /// The lowest key of all layers with its uppermost value.
    fn step(&mut self) -> Result<Option<Item<'v>>, MetaError> {
        let lmdb = match self.lmdb.peek() {
            Some(Ok((key, _))) => Some(*key),
            Some(Err(_)) => match self.lmdb.next() {
                Some(Err(e)) => return Err(e.into()),
                _ => None,
            },
            None => None,
        };
        let active = self.active.peek().map(|(k, _)| k.as_slice());
        let frozen = self.frozen.as_mut().and_then(Peekable::peek);
        let frozen = frozen.map(|(k, _)| k.as_slice());
        let Some(key) = [active, frozen, lmdb].into_iter().flatten().min() else {
            return Ok(None);
        };
        let mut value = None;
        if lmdb == Some(key) {
            value = match self.lmdb.next() {
                Some(Ok((_, v))) => Some(v),
                _ => None,
            };
        }
        if frozen == Some(key) {
            let entry = self.frozen.as_mut().and_then(Iterator::next);
            value = entry.and_then(|(_, v)| v.as_deref());
        }
        if active == Some(key) {
            value = self.active.next().and_then(|(_, v)| v.as_deref());
        }
        Ok(Some((key, value)))
    }
}

impl<'v> Iterator for Range<'v> {
    type Item = Result<(&'v [u8], &'v [u8]), MetaError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.step() {
                Err(e) => return Some(Err(e)),
                Ok(None) => return None,
                Ok(Some((key, _))) if !key.starts_with(&self.prefix) => return None,
                Ok(Some((key, Some(value)))) => return Some(Ok((key, value))),
                Ok(Some((_, None))) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    const MIB: usize = 1 << 20;

    /// A directory of one test's own, gone with it.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let name = format!("dfsd-meta-{}-{name}", std::process::id());
            let dir = Dir(std::env::temp_dir().join(name));
            fs::create_dir(&dir.0).unwrap();
            dir
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn all(v: &View<'_>, from: &str, prefix: &str) -> String {
        let items = v.range(from.as_bytes(), prefix.as_bytes()).unwrap();
        let pairs = items.map(|item| {
            let (k, v) = item.unwrap();
            let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
            format!("{}={}", text(k), text(v))
        });
        pairs
            .filter(|p| !p.starts_with('!'))
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn put(meta: &Meta, pairs: &[(&str, &str)]) {
        let mut tx = meta.write();
        for (k, v) in pairs {
            tx.put(k.as_bytes(), v.as_bytes().to_vec());
        }
    }

    fn checkpoint(meta: &Meta) {
        assert!(meta.freeze());
        meta.commit_frozen().unwrap();
    }

    #[test]
    fn layers() {
        let dir = Dir::new("layers");
        let meta = Meta::open(&dir.0, MIB).unwrap();
        put(
            &meta,
            &[("a1", "lmdb"), ("a2", "lmdb"), ("a3", "lmdb"), ("b", "x")],
        );
        checkpoint(&meta);
        put(&meta, &[("a2", "frozen"), ("a4", "frozen")]);
        meta.write().delete(b"a1").unwrap();
        assert!(meta.freeze());
        assert!(!meta.freeze());
        put(
            &meta,
            &[("a0", "active"), ("a4", "active"), ("a1", "again")],
        );
        meta.write().delete(b"a3").unwrap();

        let want = "a0=active a1=again a2=frozen a4=active";
        assert_eq!(all(&meta.read(), "", "a"), want);
        assert_eq!(all(&meta.read(), "a2", "a"), "a2=frozen a4=active");
        assert_eq!(all(&meta.read(), "a5", "a"), "");
        assert_eq!(all(&meta.read(), "", ""), format!("{want} b=x"));
        assert_eq!(meta.read().get(b"a3").unwrap(), None);
        assert_eq!(meta.read().get(b"a2").unwrap(), Some(&b"frozen"[..]));
        assert_eq!(meta.get_committed(b"a2").unwrap(), Some(b"lmdb".to_vec()));

        meta.commit_frozen().unwrap();
        assert_eq!(all(&meta.read(), "", "a"), want);
        assert_eq!(meta.get_committed(b"a2").unwrap(), Some(b"frozen".to_vec()));
        assert_eq!(meta.get_committed(b"a1").unwrap(), None);
        assert_eq!(meta.get_committed(b"a3").unwrap(), Some(b"lmdb".to_vec()));
        checkpoint(&meta);
        assert_eq!(all(&meta.read(), "", "a"), want);
        assert_eq!(meta.get_committed(b"a3").unwrap(), None);
    }

    #[test]
    fn overlay_is_lost_without_commit() {
        let dir = Dir::new("reopen");
        let meta = Meta::open(&dir.0, MIB).unwrap();
        put(&meta, &[("a", "1")]);
        checkpoint(&meta);
        put(&meta, &[("a", "2"), ("b", "2")]);
        assert!(meta.freeze());
        drop(meta);
        let meta = Meta::open(&dir.0, MIB).unwrap();
        assert_eq!(all(&meta.read(), "", ""), "a=1");
    }

    #[test]
    fn bytes_of_the_overlay() {
        let dir = Dir::new("bytes");
        let meta = Meta::open(&dir.0, MIB).unwrap();
        assert_eq!(meta.overlay_bytes(), 0);
        put(&meta, &[("key", "value")]);
        assert_eq!(meta.overlay_bytes(), 8 + ENTRY_COST);
        put(&meta, &[("key", "v")]);
        assert_eq!(meta.overlay_bytes(), 4 + ENTRY_COST);
        meta.write().delete(b"key").unwrap();
        assert_eq!(meta.overlay_bytes(), 0, "nothing below knows it");
        put(&meta, &[("key", "value")]);
        assert!(meta.freeze());
        assert_eq!(meta.overlay_bytes(), 0);
        meta.write().delete(b"key").unwrap();
        assert_eq!(meta.overlay_bytes(), 3 + ENTRY_COST, "frozen has it");
        meta.commit_frozen().unwrap();
        assert_eq!(meta.read().get(b"key").unwrap(), None);
    }

    #[test]
    fn map_full_is_an_error() {
        let dir = Dir::new("full");
        let meta = Meta::open(&dir.0, 128 << 10).unwrap();
        let mut tx = meta.write();
        for n in 0..200u32 {
            tx.put(&n.to_be_bytes(), vec![7; 1000]);
        }
        drop(tx);
        assert!(meta.freeze());
        match meta.commit_frozen() {
            Err(MetaError::Full { map_size }) => assert_eq!(map_size, 128 << 10),
            other => panic!("{other:?}"),
        }
        // What was there is still read.
        let value = meta
            .read()
            .get(&7u32.to_be_bytes())
            .unwrap()
            .map(<[u8]>::len);
        assert_eq!(value, Some(1000));
    }

    #[test]
    fn room_follows_what_is_stored() {
        let dir = Dir::new("room");
        let meta = Meta::open_as(&dir.0, 64 * MIB, false).unwrap();
        let left = |meta: &Meta| {
            let room = meta.room().unwrap();
            (room.free + room.growth).saturating_sub(room.needed)
        };
        let empty = left(&meta);
        let mut tx = meta.write();
        for n in 0..4000u32 {
            tx.put(&n.to_be_bytes(), vec![7; 1000]);
        }
        drop(tx);
        let waiting = left(&meta);
        assert!(waiting + 4_000_000 <= empty, "{waiting} {empty}");
        checkpoint(&meta);
        let stored = left(&meta);
        assert!(stored + 4_000_000 <= empty, "{stored} {empty}");
        let mut tx = meta.write();
        for n in 0..4000u32 {
            tx.delete(&n.to_be_bytes()).unwrap();
        }
        drop(tx);
        checkpoint(&meta);
        let again = left(&meta);
        assert!(again > stored + 4_000_000, "{again} {stored}");
    }

    #[test]
    fn other_formats_are_refused() {
        let dir = Dir::new("format");
        let meta = Meta::open(&dir.0, MIB).unwrap();
        meta.write().put(FORMAT_KEY, 7u32.to_be_bytes().to_vec());
        checkpoint(&meta);
        drop(meta);
        match Meta::open(&dir.0, MIB).map(|_| ()) {
            Err(e @ MetaError::Format { found: 7 }) => {
                assert_eq!(e.to_string(), "metadata: format 7, need format 1")
            }
            other => panic!("{other:?}"),
        }
        fs::write(dir.0.join("data.mdb"), [0x5a; 8192]).unwrap();
        assert!(Meta::open(&dir.0, MIB).is_err());
    }

    #[test]
    fn preallocated_map() {
        use std::os::unix::fs::MetadataExt;
        let dir = Dir::new("prealloc");
        fs::create_dir(dir.0.join("new")).unwrap();
        fs::write(dir.0.join("new/data.mdb"), b"interrupted").unwrap();
        assert_eq!(preallocate(&dir.0, 2 * MIB).unwrap(), 2 * MIB);
        let stat = fs::metadata(dir.0.join("data.mdb")).unwrap();
        assert_eq!(stat.len(), 2 * MIB as u64);
        assert!(stat.blocks() * 512 >= 2 * MIB as u64);
        // As OpenBSD has it, whatever system this is.
        let open = |size| Meta::open_as(&dir.0, size, true).unwrap();
        let meta = open(2 * MIB);
        put(&meta, &[("a", "1")]);
        checkpoint(&meta);
        put(&meta, &[("b", "2")]);
        checkpoint(&meta);
        assert_eq!(all(&meta.read(), "", ""), "a=1 b=2");
        drop(meta);
        assert_eq!(preallocate(&dir.0, 3 * MIB).unwrap(), 3 * MIB);
        assert_eq!(preallocate(&dir.0, MIB).unwrap(), 3 * MIB);
        let meta = open(MIB);
        assert_eq!(meta.map_size, 3 * MIB);
        put(&meta, &[("a", "3")]);
        checkpoint(&meta);
        drop(meta);
        assert_eq!(all(&open(3 * MIB).read(), "", ""), "a=3 b=2");
        // Nothing was cut off, nor grown into a hole.
        let stat = fs::metadata(dir.0.join("data.mdb")).unwrap();
        assert_eq!(stat.len(), 3 * MIB as u64);
        assert!(stat.blocks() * 512 >= 3 * MIB as u64);
    }

    /// Two keys always move together; no reader ever sees them apart, and
    /// none sees them go back, while checkpoints run.
    #[test]
    fn readers_are_consistent() {
        const LAST: u64 = 3000;
        let dir = Dir::new("readers");
        let meta = Meta::open(&dir.0, 64 * MIB).unwrap();
        let done = |v: &View<'_>| match v.get(b"x").unwrap() {
            Some(x) => {
                assert_eq!(Some(x), v.get(b"y").unwrap());
                let pairs = v.range(b"x", b"").unwrap().map(|i| i.unwrap().1);
                assert!(pairs.into_iter().all(|value| value == x));
                u64::from_be_bytes(x.try_into().unwrap())
            }
            None => 0,
        };
        std::thread::scope(|s| {
            s.spawn(|| {
                for n in 1..=LAST {
                    let mut tx = meta.write();
                    tx.put(b"x", n.to_be_bytes().to_vec());
                    tx.put(b"y", n.to_be_bytes().to_vec());
                    tx.put(&n.to_be_bytes(), vec![0; 100]);
                }
            });
            s.spawn(|| loop {
                meta.freeze();
                meta.commit_frozen().unwrap();
                if done(&meta.read()) == LAST {
                    return;
                }
            });
            for _ in 0..2 {
                s.spawn(|| {
                    let mut last = 0;
                    while last < LAST {
                        let now = done(&meta.read());
                        assert!(now >= last);
                        last = now;
                    }
                });
            }
        });
        checkpoint(&meta);
        let last = meta.get_committed(b"x").unwrap();
        assert_eq!(last, Some(LAST.to_be_bytes().to_vec()));
    }

    #[test]
    fn values() {
        let bytes = encode(&(7u32, "x"), "pair").unwrap();
        assert_eq!(decode::<(u32, String)>(&bytes, "pair").unwrap().0, 7);
        let mut long = bytes.clone();
        long.push(0);
        for bad in [&long[..], &bytes[..1], b""] {
            let e = decode::<(u32, String)>(bad, "pair").unwrap_err();
            assert_eq!(e.to_string(), "metadata: corrupt pair");
        }
    }
}
