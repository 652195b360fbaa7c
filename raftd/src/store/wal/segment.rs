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

//! The files of the log and the pool that keeps spare ones ready.  Runs in
//! raftd; preparation happens on a thread of its own, never in the way of an
//! append.  A segment that readers still hold is never reused.  The last spare
//! is for recovery, which needs it after a crash to write the tail of the log
//! anew, when the disk may have no room for another.

#![forbid(unsafe_code)]

use super::record::{check_entry, Take, HEAD, SEGMENT_HEADER};
use super::{lock, Shared};
use common::sys::random::random_u64;
use common::{log_info, log_warn};
use nix::errno::Errno;
use nix::sys::statvfs::statvfs;
use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

const SEGMENT_MAGIC: &[u8; 8] = b"dfsdwal1";
/// What recovery finds ready.
pub(super) const KEPT: usize = 1;
/// Spares that the pool keeps ready at any time; one less on a small disk.
const SPARES_MIN: usize = 3;
/// Spares that it comes to with time: what a stream of writes needs until the
/// first segments come back.  One that is made in the middle of it costs the
/// disk as much as what is then written to it.
const SPARES: usize = 7;
/// They take no more of the disk than this part.
const SPARES_SHARE: u64 = 16;
/// Free files are removed beyond so many spares more.
const SPARES_OVER: usize = 2;
/// Between two spares that are not needed yet.
const LEISURE: Duration = Duration::from_secs(10);
/// What such a spare must leave free on the disk.
const LEISURE_ROOM: u64 = 1 << 30;
/// What any spare must leave free, or this part of a small disk: a checkpoint
/// needs some room, and gives more back.
const LEAST_ROOM: u64 = 32 << 20;
const LEAST_SHARE: u64 = 64;
/// Between attempts to make a spare on a full disk.
const RETRY: Duration = Duration::from_secs(1);
/// A file in the making; no segment yet.
const NEW: &str = "new";

/// Position of a segment in the log, from 1; also the name of its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentId(pub u64);

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06}", self.0)
    }
}

/// One file of the log.
pub struct Segment {
    id: SegmentId,
    salt: u64,
    size: u64,
    file: File,
    /// Nothing in it counts any more; with the last reference its file goes
    /// back to the pool.
    retired: AtomicBool,
    pool: Weak<Pool>,
}

impl Segment {
    pub fn id(&self) -> SegmentId {
        self.id
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn salt(&self) -> u64 {
        self.salt
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file
            .read_exact_at(buf, offset)
            .map_err(|err| io::Error::new(err.kind(), format!("{self}: read: {err}")))
    }

    /// The body of the entry whose record begins there, verified.
    pub fn entry(&self, offset: u64, len: usize, index: u64) -> io::Result<Vec<u8>> {
        let mut record = vec![0; HEAD + len];
        self.read_exact_at(&mut record, offset)?;
        check_entry(record, self.salt, index).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{self}: entry {index}: checksum mismatch at offset {offset}"),
            )
        })
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {}", self.id)
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.retired.load(Ordering::Acquire) {
            if let Some(pool) = self.pool.upgrade() {
                pool.give_back(self.id);
            }
        }
    }
}

/// A file of the log's directory, as found at start.
pub(super) enum Found {
    Segment(Arc<Segment>),
    /// Was being recycled.
    Free,
    /// Named as a segment, and not a valid one.
    Bad,
}

pub(super) struct Pool {
    dir: PathBuf,
    size: u64,
    spares: Mutex<Spares>,
    changed: Condvar,
    /// How many spares it shall come to.
    wanted: usize,
}

#[derive(Default)]
struct Spares {
    ready: VecDeque<Arc<Segment>>,
    /// Files that can be recycled.
    free: VecDeque<SegmentId>,
    /// The id of the next segment that is made ready.
    next: u64,
    no_room: bool,
    closed: bool,
}

impl Pool {
    pub fn new(dir: &Path, size: u64) -> io::Result<Arc<Pool>> {
        if !dir.is_dir() {
            fs::create_dir(dir)?;
            sync_dir(dir.parent().unwrap_or(dir))?;
        }
        match fs::remove_file(dir.join(NEW)) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        Ok(Arc::new(Pool {
            dir: dir.to_path_buf(),
            size,
            spares: Mutex::new(Spares::default()),
            changed: Condvar::new(),
            wanted: wanted(dir, size)?,
        }))
    }

    /// All files of the directory that are named as segments, by id.
    pub fn list(self: &Arc<Pool>) -> io::Result<Vec<(SegmentId, Found)>> {
        let mut found = Vec::new();
        for dirent in fs::read_dir(&self.dir)? {
            let name = dirent?.file_name();
            let id = match name.to_str().map(str::parse::<u64>) {
                Some(Ok(id)) => SegmentId(id),
                _ => continue,
            };
            found.push((id, self.open(id)?));
        }
        found.sort_by_key(|(id, _)| *id);
        Ok(found)
    }

    fn open(self: &Arc<Pool>, id: SegmentId) -> io::Result<Found> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(id))?;
        let len = file.metadata()?.len();
        let mut head = [0; 36];
        if len < SEGMENT_HEADER {
            return Ok(Found::Bad);
        }
        file.read_exact_at(&mut head, 0)?;
        let Some((named, salt, size)) = decode_header(&head) else {
            return Ok(Found::Bad);
        };
        if named != id {
            return Ok(Found::Free);
        }
        if len < size {
            return Ok(Found::Bad);
        }
        Ok(Found::Segment(self.segment(id, salt, size, file)))
    }

    fn segment(self: &Arc<Pool>, id: SegmentId, salt: u64, size: u64, file: File) -> Arc<Segment> {
        Arc::new(Segment {
            id,
            salt,
            size,
            file,
            retired: AtomicBool::new(false),
            pool: Arc::downgrade(self),
        })
    }

    fn path(&self, id: SegmentId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// Says where new ids begin and what files are free.  Those of higher ids
    /// come first, ascending, so that a rename to a new id never meets a file
    /// which still has that name.
    pub fn start(&self, next: SegmentId, free: impl IntoIterator<Item = SegmentId>) {
        let mut spares = lock(&self.spares);
        spares.next = next.0;
        spares.free.extend(free);
    }

    /// Nothing in that file counts and nobody reads it.
    pub fn give_back(&self, id: SegmentId) {
        lock(&self.spares).free.push_back(id);
        self.changed.notify_all();
    }

    /// The next segment, if that leaves so many.
    pub fn take(&self, left: usize) -> Option<Arc<Segment>> {
        let mut spares = lock(&self.spares);
        if spares.ready.len() <= left {
            return None;
        }
        let segment = spares.ready.pop_front();
        self.changed.notify_all();
        segment
    }

    /// The next one for recovery, which may be the last.
    pub fn take_any(self: &Arc<Pool>) -> io::Result<Arc<Segment>> {
        self.ensure()?;
        self.take(0)
            .ok_or_else(|| io::Error::other("no spare segment"))
    }

    /// Makes one spare ready at once, if there is none.
    pub fn ensure(self: &Arc<Pool>) -> io::Result<()> {
        let spares = lock(&self.spares);
        if !spares.ready.is_empty() {
            return Ok(());
        }
        drop(spares);
        self.prepare()
    }

    pub fn close(&self) {
        lock(&self.spares).closed = true;
        self.changed.notify_all();
    }

    /// The thread that makes spares, and wakes the one that waits for them.
    pub fn run(self: Arc<Pool>, shared: &Shared) {
        loop {
            if !self.wait_for_work() {
                return;
            }
            let made = match self.leaves_room() {
                true => self.prepare(),
                false => Err(Errno::ENOSPC.into()),
            };
            if lock(&self.spares).closed {
                return;
            }
            let no_room = &shared.counters.no_room;
            no_room.store(made.is_err(), Ordering::Relaxed);
            shared.wake_up();
            if let Err(err) = made {
                self.wait_for_room(&err);
            }
        }
    }

    /// False when the pool is closed.
    fn wait_for_work(&self) -> bool {
        let mut leisure = Instant::now() + LEISURE;
        let mut spares = lock(&self.spares);
        while !spares.closed && !self.has_work(&spares) {
            let left = leisure.saturating_duration_since(Instant::now());
            let more = spares.ready.len() < self.wanted;
            if more && left.is_zero() {
                if self.has_leisure_room() {
                    break;
                }
                leisure = Instant::now() + LEISURE;
                continue;
            }
            spares = match more {
                true => {
                    let woken = self.changed.wait_timeout(spares, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                false => {
                    let woken = self.changed.wait(spares);
                    woken.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
        !spares.closed
    }

    fn has_leisure_room(&self) -> bool {
        let free = disk(&self.dir).map_or(0, |(free, _)| free);
        free >= LEISURE_ROOM.saturating_add(self.size)
    }

    /// Whether a spare can be made that leaves the least room; one of a free
    /// file takes none.
    fn leaves_room(&self) -> bool {
        let Ok((free, all)) = disk(&self.dir) else {
            return true;
        };
        let least = LEAST_ROOM.min(all / LEAST_SHARE);
        !lock(&self.spares).free.is_empty() || free >= least.saturating_add(self.size)
    }

    fn has_work(&self, spares: &Spares) -> bool {
        spares.ready.len() < self.wanted.min(SPARES_MIN) || !spares.free.is_empty()
    }

    pub fn ready(&self) -> usize {
        lock(&self.spares).ready.len()
    }

    fn wait_for_room(&self, err: &io::Error) {
        let mut spares = lock(&self.spares);
        if !spares.no_room && !spares.closed {
            log_warn!(err, "wal: spare segment");
        }
        spares.no_room = true;
        while !spares.closed && spares.free.is_empty() {
            let (guard, wait) = self
                .changed
                .wait_timeout(spares, RETRY)
                .unwrap_or_else(PoisonError::into_inner);
            spares = guard;
            if wait.timed_out() {
                return;
            }
        }
    }

    /// Turns a free file into a spare, or makes one, or removes a file that
    /// is too many.  One caller at a time.
    fn prepare(self: &Arc<Pool>) -> io::Result<()> {
        let mut spares = lock(&self.spares);
        let id = SegmentId(spares.next);
        let free = spares.free.pop_front();
        let many = spares.ready.len() >= self.wanted + SPARES_OVER;
        drop(spares);
        let made = match free {
            Some(old) if many => return self.remove(old),
            Some(old) => match self.recycle(old, id)? {
                Some(segment) => segment,
                None => return Ok(()),
            },
            None => self.create(id)?,
        };
        let mut spares = lock(&self.spares);
        if spares.no_room {
            log_info!("wal: there is room for segments again");
        }
        spares.no_room = false;
        spares.next += 1;
        spares.ready.push_back(made);
        self.changed.notify_all();
        Ok(())
    }

    fn remove(&self, id: SegmentId) -> io::Result<()> {
        fs::remove_file(self.path(id))
    }

    /// Gives a file a new id and a new salt.  None if it is of another size
    /// and was removed.
    fn recycle(
        self: &Arc<Pool>,
        old: SegmentId,
        id: SegmentId,
    ) -> io::Result<Option<Arc<Segment>>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(old))?;
        if file.metadata()?.len() != self.size {
            self.remove(old)?;
            return Ok(None);
        }
        let salt = random_u64()?;
        file.write_all_at(&encode_header(id, salt, self.size), 0)?;
        file.sync_all()?;
        if old != id {
            fs::rename(self.path(old), self.path(id))?;
            sync_dir(&self.dir)?;
        }
        Ok(Some(self.segment(id, salt, self.size, file)))
    }

    /// Writes the zeros for real: blocks merely allocated would cost a journal
    /// flush each when they are first written.
    fn create(self: &Arc<Pool>, id: SegmentId) -> io::Result<Arc<Segment>> {
        let new = self.dir.join(NEW);
        let made = self.create_as(&new, id);
        if made.is_err() {
            let _ = fs::remove_file(&new);
        }
        made
    }

    fn create_as(self: &Arc<Pool>, new: &Path, id: SegmentId) -> io::Result<Arc<Segment>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(new)?;
        let zeros = vec![0; self.size.min(1 << 20) as usize];
        let mut at = 0;
        while at < self.size {
            if lock(&self.spares).closed {
                return Err(io::Error::other("closed"));
            }
            let len = (self.size - at).min(zeros.len() as u64);
            file.write_all_at(zeros.get(..len as usize).unwrap_or(&zeros), at)?;
            at += len;
        }
        let salt = random_u64()?;
        file.write_all_at(&encode_header(id, salt, self.size), 0)?;
        file.sync_all()?;
        fs::rename(new, self.path(id))?;
        sync_dir(&self.dir)?;
        Ok(self.segment(id, salt, self.size, file))
    }
}

/// How many spares the disk has room for.
fn wanted(dir: &Path, size: u64) -> io::Result<usize> {
    let (_, all) = disk(dir)?;
    let share = usize::try_from(all / SPARES_SHARE / size.max(1)).unwrap_or(SPARES);
    Ok(share.clamp(KEPT + 1, SPARES))
}

/// Bytes of the disk that are free, and all.
fn disk(dir: &Path) -> io::Result<(u64, u64)> {
    let st = statvfs(dir)?;
    // The widths of these differ between systems.
    #[allow(clippy::unnecessary_cast)]
    let (unit, free, all) = (
        st.fragment_size() as u64,
        st.blocks_available() as u64,
        st.blocks() as u64,
    );
    Ok((free.saturating_mul(unit), all.saturating_mul(unit)))
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    File::open(dir)?.sync_all()
}

fn encode_header(id: SegmentId, salt: u64, size: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(36);
    out.extend_from_slice(SEGMENT_MAGIC);
    for word in [id.0, salt, size] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

fn decode_header(head: &[u8]) -> Option<(SegmentId, u64, u64)> {
    let mut take = Take(head);
    let fields = take.bytes(32)?;
    if take.u32()? != crc32c::crc32c(fields) {
        return None;
    }
    let mut take = Take(fields);
    if take.bytes(8)? != SEGMENT_MAGIC {
        return None;
    }
    Some((SegmentId(take.u64()?), take.u64()?, take.u64()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trip() {
        let head = encode_header(SegmentId(7), 8, 9);
        assert_eq!(decode_header(&head), Some((SegmentId(7), 8, 9)));
        for at in 0..head.len() {
            let mut bad = head.clone();
            bad[at] ^= 1;
            assert_eq!(decode_header(&bad), None);
        }
        assert_eq!(decode_header(&head[..35]), None);
    }
}
