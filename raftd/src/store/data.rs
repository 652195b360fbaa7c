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

//! The backing files: the contents of each inode that is not inline, one
//! plain file per inode.  Runs in raftd; apply writes them in place and never
//! syncs, since the log is their journal; a checkpoint syncs what was written
//! since the last one.  They are never mapped, only read and written with
//! pread(2) and pwrite(2).  Nothing here may decide the result of an
//! operation: an error means that this node cannot follow.
//!
//! ```text
//! data/XX/N     contents of inode N; its size is the inode's size
//!               N   inode number, hexadecimal without leading zeros
//!               XX  low byte of N, two hexadecimal digits
//! ```
//!
//! All operations are physical redo, and may be repeated over a file that has
//! already seen later ones: a replay that goes on to the last of them leaves
//! the same bytes.  So a missing file is made by whatever comes first.

#![forbid(unsafe_code)]

use common::fs::{InodeNo, BLOCK};
use common::sys::file::{preallocate, punch, syncfs};
use common::{log_warn, log_warnx};
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Backing files that are kept open for writing.
const OPEN_MAX: usize = 256;
/// The disk is asked for its room after so many bytes, a file counting as
/// one block more.
const ASK_ROOM: u64 = 1 << 20;
/// With fewer free bytes than this, or a 32nd of a small disk, writes stop.
/// What is left is for the checkpoint, the log and whoever comes to help.
const RESERVE: u64 = 64 << 20;
/// Bytes that are looked at at a time where no hole can be made.
const ZERO_STEP: usize = 64 << 10;
/// From this many files on, syncing the whole file system is cheaper than
/// one flush for each of them.
const SYNC_ALL: usize = 16;

/// What the next checkpoint has to see to.
#[derive(Debug, Default)]
pub struct Dirty {
    /// Written since the last checkpoint.
    files: BTreeSet<InodeNo>,
    /// Directories with entries made or removed since.
    dirs: BTreeSet<u8>,
    /// Files whose inode is gone.
    pub dead: Vec<InodeNo>,
}

/// What the disk can still take, the reserve left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub bytes: u64,
    /// What is missing of the reserve.
    pub short: u64,
    pub inodes: u64,
}

struct Open {
    file: Arc<File>,
    used: u64,
}

#[derive(Default)]
struct Files {
    open: HashMap<InodeNo, Open>,
    /// Counts uses, to find the file that was not used for longest.
    uses: u64,
    dirty: Dirty,
    /// Bytes written since the disk was asked for its room.
    unasked: u64,
}

pub struct Data {
    dir: PathBuf,
    /// The directory itself, open for as long as errors of the file system
    /// are to be told to us.
    root: File,
    files: Mutex<Files>,
}

impl Data {
    /// Makes the directories in the empty directory `dir`, durably.
    pub fn create(dir: &Path) -> io::Result<()> {
        for n in 0..=u8::MAX {
            fs::create_dir(dir.join(format!("{n:02x}")))?;
        }
        File::open(dir)?.sync_all()
    }

    pub fn open(dir: &Path) -> io::Result<Data> {
        Ok(Data {
            dir: dir.to_owned(),
            root: File::open(dir)?,
            files: Mutex::default(),
        })
    }

    /// Read-only, for fused; closed on exec.
    pub fn open_read(&self, ino: InodeNo) -> io::Result<OwnedFd> {
        Ok(File::open(self.path(ino))?.into())
    }

    /// Up to `len` bytes from `offset`; fewer only at the end of the file.
    pub fn read(&self, ino: InodeNo, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let cached = self.cached(&mut self.files(), ino);
        let file = match cached {
            Some(file) => file,
            None => Arc::new(File::open(self.path(ino))?),
        };
        let mut buf = vec![0; len];
        let mut got = 0;
        while let Some(rest) = buf.get_mut(got..).filter(|r| !r.is_empty()) {
            match file.read_at(rest, offset.saturating_add(got as u64)) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        buf.truncate(got);
        Ok(buf)
    }

    /// Writes in place.  A hole is left before `offset` if the file is
    /// shorter.
    pub fn write(&self, ino: InodeNo, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.ask_room(bytes.len() as u64)?;
        self.writable(ino)?.write_all_at(bytes, offset)
    }

    /// Gives the file this size; what is new is a hole.
    pub fn truncate(&self, ino: InodeNo, size: u64) -> io::Result<()> {
        self.writable(ino)?.set_len(size)
    }

    /// Makes these bytes zeros, as far as the file has them.
    pub fn zero(&self, ino: InodeNo, offset: u64, len: u64) -> io::Result<()> {
        let file = self.writable(ino)?;
        match punch(&*file, offset, len) {
            Some(result) => result,
            None => write_zeros(&file, offset, len),
        }
    }

    /// Makes sure that the range of a file, which then has so many blocks, can
    /// be written; where the disk can promise no such thing, nothing happens.
    /// Nor does it when there is no room, for apply must not stand still for a
    /// promise: in a replay a file may get back here what it has given to
    /// others since.
    pub fn reserve(&self, ino: InodeNo, offset: u64, len: u64, blocks: u64) -> io::Result<()> {
        let file = self.writable(ino)?;
        // In a replay it may all be there, and no room for it once more.
        let has = file.metadata()?.blocks().saturating_mul(512);
        let missing = blocks.saturating_mul(BLOCK).saturating_sub(has);
        if missing > 0 && self.room()?.bytes < missing {
            log_warnx!("inode {ino}: no room to reserve {missing} bytes");
            return Ok(());
        }
        match preallocate(&*file, offset, len) {
            Some(Err(e)) if e.kind() == io::ErrorKind::StorageFull => {
                log_warn!(e, "inode {ino}: reserve");
                Ok(())
            }
            done => done.unwrap_or(Ok(())),
        }
    }

    /// Makes these bytes all that the file contains.
    pub fn spill(&self, ino: InodeNo, contents: &[u8]) -> io::Result<()> {
        self.ask_room(contents.len() as u64)?;
        let file = self.writable(ino)?;
        file.write_all_at(contents, 0)?;
        file.set_len(contents.len() as u64)
    }

    /// The inode is gone.  The file stays until a checkpoint has committed
    /// that, so that each checkpoint finds the files of its inodes.
    pub fn remove(&self, ino: InodeNo) {
        let mut files = self.files();
        files.open.remove(&ino);
        files.dirty.files.remove(&ino);
        files.dirty.dead.push(ino);
    }

    /// Frees what removed files occupy before their time, when the disk is
    /// full.  Only a replay could miss the bytes, and it ends with the removal.
    pub fn squeeze(&self) {
        for ino in &self.files().dirty.dead {
            let file = OpenOptions::new().write(true).open(self.path(*ino));
            let _ = file.and_then(|f| f.set_len(0));
        }
    }

    /// What has changed since the last call.  To be called between two
    /// entries, together with the freeze of the metadata.
    pub fn take_dirty(&self) -> Dirty {
        mem::take(&mut self.files().dirty)
    }

    /// Brings files and directories to the disk.  They may be written to
    /// meanwhile.  After an error the process must end: what was not written
    /// may already be forgotten by the kernel.
    pub fn sync(&self, dirty: &Dirty) -> io::Result<()> {
        if dirty.files.len() >= SYNC_ALL {
            // It takes other files along, but their bytes have to go to the
            // disk anyway, while a flush for each would hold up the log.
            if let Some(result) = syncfs(&self.root) {
                return result.map_err(|e| named(e, &self.dir));
            }
        }
        for ino in &dirty.files {
            // An error of a write that happened while the file was not open
            // here is still told to the first descriptor that syncs it.
            let cached = self.cached(&mut self.files(), *ino);
            let synced = match cached {
                Some(file) => file.sync_data(),
                None => self.open_write(*ino, false).and_then(|f| f.sync_data()),
            };
            synced.map_err(|e| named(e, &self.path(*ino)))?;
        }
        for dir in &dirty.dirs {
            let dir = self.dir.join(format!("{dir:02x}"));
            let synced = File::open(&dir).and_then(|d| d.sync_all());
            synced.map_err(|e| named(e, &dir))?;
        }
        Ok(())
    }

    /// Unlinks files whose removal is committed.  One that cannot be is
    /// answered, to be tried again with the next checkpoint.
    pub fn unlink(&self, dead: &[InodeNo]) -> Vec<InodeNo> {
        let mut left = Vec::new();
        for ino in dead {
            match fs::remove_file(self.path(*ino)) {
                // The entry must not come back: the next checkpoint forgets it.
                Ok(()) => {
                    self.files().dirty.dirs.insert(dir_of(*ino));
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => {
                    common::log_warn!(e, "{}", self.path(*ino).display());
                    left.push(*ino);
                }
            }
        }
        left
    }

    /// Files whose removal is committed, found or left after a checkpoint.
    pub fn bury(&self, dead: Vec<InodeNo>) {
        self.files().dirty.dead.extend(dead);
    }

    pub fn room(&self) -> io::Result<Room> {
        let st = nix::sys::statvfs::fstatvfs(&self.root)?;
        // The widths of these differ between systems.
        #[allow(clippy::unnecessary_cast)]
        let (unit, blocks, free) = (
            st.fragment_size() as u64,
            st.blocks() as u64,
            st.blocks_available() as u64,
        );
        #[allow(clippy::unnecessary_cast)]
        let (files, files_free) = (st.files() as u64, st.files_available() as u64);
        let reserve = RESERVE.min(blocks.saturating_mul(unit) / 32);
        Ok(Room {
            bytes: free.saturating_mul(unit).saturating_sub(reserve),
            short: reserve.saturating_sub(free.saturating_mul(unit)),
            // Some file systems make inodes as they go, and say 0.
            inodes: if files == 0 { 1 << 32 } else { files_free },
        })
    }

    fn ask_room(&self, len: u64) -> io::Result<()> {
        {
            let mut files = self.files();
            files.unasked += len;
            if files.unasked < ASK_ROOM {
                return Ok(());
            }
        }
        if self.room()?.bytes < len {
            return Err(reserve_reached());
        }
        self.files().unasked = 0;
        Ok(())
    }

    /// The file, made if it is not there, and taken down as dirty.
    fn writable(&self, ino: InodeNo) -> io::Result<Arc<File>> {
        let mut files = self.files();
        files.dirty.files.insert(ino);
        if let Some(file) = self.cached(&mut files, ino) {
            return Ok(file);
        }
        let file = match self.open_write(ino, false) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                files.dirty.dirs.insert(dir_of(ino));
                files.unasked += BLOCK;
                self.open_write(ino, true)?
            }
            other => other?,
        };
        let file = Arc::new(file);
        if files.open.len() >= OPEN_MAX {
            let oldest = files.open.iter().min_by_key(|(_, open)| open.used);
            if let Some(ino) = oldest.map(|(ino, _)| *ino) {
                files.open.remove(&ino);
            }
        }
        let open = Open {
            file: file.clone(),
            used: files.uses,
        };
        files.open.insert(ino, open);
        Ok(file)
    }

    fn cached(&self, files: &mut Files, ino: InodeNo) -> Option<Arc<File>> {
        files.uses += 1;
        let used = files.uses;
        let open = files.open.get_mut(&ino)?;
        open.used = used;
        Some(open.file.clone())
    }

    fn open_write(&self, ino: InodeNo, create: bool) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create);
        options.open(self.path(ino))
    }

    fn path(&self, ino: InodeNo) -> PathBuf {
        self.dir.join(format!("{:02x}/{:x}", dir_of(ino), ino.0))
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For where no hole can be made.  What is a hole already remains one.
fn write_zeros(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let end = offset.saturating_add(len).min(file.metadata()?.len());
    let (mut buf, zeros) = (vec![0; ZERO_STEP], vec![0; ZERO_STEP]);
    let mut at = offset;
    while at < end {
        let want = (end - at).min(ZERO_STEP as u64) as usize;
        let got = file.read_at(buf.get_mut(..want).unwrap_or(&mut []), at)?;
        if got == 0 {
            break;
        }
        let (old, new) = (buf.get(..got), zeros.get(..got).unwrap_or(&[]));
        if old != Some(new) {
            file.write_all_at(new, at)?;
        }
        at += got as u64;
    }
    Ok(())
}

fn reserve_reached() -> io::Error {
    io::Error::new(
        io::ErrorKind::StorageFull,
        "only the reserve is left on the disk",
    )
}

fn dir_of(ino: InodeNo) -> u8 {
    (ino.0 & 0xff) as u8
}

fn named(e: io::Error, path: &Path) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temp() -> (PathBuf, Data) {
        let name = format!("dfsd-data-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        Data::create(&dir).unwrap();
        let data = Data::open(&dir).unwrap();
        (dir, data)
    }

    #[test]
    fn life_of_backing_files() {
        let (dir, data) = temp();
        let ino = InodeNo(0x1ab);
        data.write(ino, 5, b"hello").unwrap();
        assert_eq!(data.read(ino, 0, 100).unwrap(), b"\0\0\0\0\0hello");
        data.spill(ino, b"abc").unwrap();
        assert_eq!(data.read(ino, 1, 1).unwrap(), b"b");
        assert_eq!(data.read(ino, 9, 1).unwrap(), b"");
        data.truncate(ino, 5).unwrap();
        assert_eq!(fs::read(dir.join("ab/1ab")).unwrap(), b"abc\0\0");

        data.write(ino, 0, &[1; 3 * ZERO_STEP]).unwrap();
        data.zero(ino, 10, 5).unwrap();
        write_zeros(&data.writable(ino).unwrap(), 20, 2 * ZERO_STEP as u64).unwrap();
        data.zero(ino, 3 * ZERO_STEP as u64 - 1, 1 << 40).unwrap();
        data.reserve(ino, 0, 4 * ZERO_STEP as u64, ZERO_STEP as u64 / 1024)
            .unwrap();
        // A promise that the disk cannot make stops nobody.
        data.reserve(ino, 0, 1 << 50, 1 << 38).unwrap();
        let mut want = vec![1; 3 * ZERO_STEP];
        want[10..15].fill(0);
        want[20..20 + 2 * ZERO_STEP].fill(0);
        want[3 * ZERO_STEP - 1] = 0;
        assert!(fs::read(dir.join("ab/1ab")).unwrap() == want);

        let dirty = data.take_dirty();
        assert!(dirty.files.contains(&ino) && dirty.dirs.contains(&0xab));
        data.sync(&dirty).unwrap();
        assert!(data.take_dirty().files.is_empty());

        data.remove(ino);
        assert!(dir.join("ab/1ab").exists());
        data.squeeze();
        assert_eq!(fs::metadata(dir.join("ab/1ab")).unwrap().len(), 0);
        let dirty = data.take_dirty();
        assert!(data.unlink(&dirty.dead).is_empty());
        assert!(!dir.join("ab/1ab").exists());
        assert!(data.unlink(&dirty.dead).is_empty());
        assert!(data.open_read(ino).is_err());

        // More files than are kept open, and a sync of all at once.
        for n in 1000..1000 + 2 * OPEN_MAX as u64 {
            data.write(InodeNo(n), 0, &n.to_be_bytes()).unwrap();
        }
        assert_eq!(data.files().open.len(), OPEN_MAX);
        data.sync(&data.take_dirty()).unwrap();
        for n in 1000..1000 + 2 * OPEN_MAX as u64 {
            assert_eq!(data.read(InodeNo(n), 0, 8).unwrap(), n.to_be_bytes());
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
