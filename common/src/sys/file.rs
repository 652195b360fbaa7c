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

//! Calls on open files that std has not: what makes data durable, writes at
//! an offset, room.  raftd runs them from its own threads; all of them block.

use nix::sys::statvfs::Statvfs;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// At most this many slices go into one call.
const IOV_MAX: usize = 1024;

/// The data, and of the metadata what is needed to read them back.
pub fn fdatasync(fd: impl AsFd) -> io::Result<()> {
    loop {
        match nix::unistd::fdatasync(fd.as_fd()) {
            Err(nix::Error::EINTR) => (),
            result => return Ok(result?),
        }
    }
}

pub fn fsync(fd: impl AsFd) -> io::Result<()> {
    loop {
        match nix::unistd::fsync(fd.as_fd()) {
            Err(nix::Error::EINTR) => (),
            result => return Ok(result?),
        }
    }
}

/// Makes the names in a directory durable.
pub fn fsync_dir(dir: &Path) -> io::Result<()> {
    fsync(File::open(dir)?)
}

/// Brings all of the file system of `fd` to the disk at once.  None where no
/// call does that and also tells errors.
#[cfg(target_os = "linux")]
pub fn syncfs(fd: impl AsFd) -> Option<io::Result<()>> {
    Some(nix::unistd::syncfs(fd.as_fd()).map_err(io::Error::from))
}

#[cfg(not(target_os = "linux"))]
pub fn syncfs(_fd: impl AsFd) -> Option<io::Result<()>> {
    None
}

/// Writes all slices at `offset`, with as few calls as possible.
pub fn pwritev_all(fd: impl AsFd, mut iov: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
    let mut at = offset;
    // Empty slices at the front would look like a write of nothing.
    IoSlice::advance_slices(&mut iov, 0);
    while !iov.is_empty() {
        let now = iov.get(..iov.len().min(IOV_MAX)).unwrap_or(&[]);
        let n = match nix::sys::uio::pwritev(fd.as_fd(), now, file_offset(at)?) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => n,
            Err(nix::Error::EINTR) => continue,
            Err(err) => return Err(err.into()),
        };
        at += n as u64;
        IoSlice::advance_slices(&mut iov, n);
    }
    Ok(())
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

/// Reserves blocks for a range and extends the file over it.  Where the
/// system or the file system cannot, nothing happens and that is success:
/// whoever needs the room for sure writes it.
#[cfg(target_os = "linux")]
pub fn allocate(fd: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    use nix::fcntl::{fallocate, FallocateFlags};
    let (offset, len) = (file_offset(offset)?, file_offset(len)?);
    loop {
        match fallocate(fd.as_fd(), FallocateFlags::empty(), offset, len) {
            Err(nix::Error::EINTR) => (),
            Err(nix::Error::EOPNOTSUPP | nix::Error::ENOSYS) => return Ok(()),
            result => return Ok(result?),
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub fn allocate(_fd: impl AsFd, _offset: u64, _len: u64) -> io::Result<()> {
    Ok(())
}

/// Makes a range read as zeros and frees its blocks if the system can; the
/// size of the file stays.
pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 || punch(file, offset, len)? {
        return Ok(());
    }
    let zeros = [0; 65536];
    let end = offset.saturating_add(len).min(file.metadata()?.len());
    let mut at = offset;
    while at < end {
        let n = (end - at).min(zeros.len() as u64);
        file.write_all_at(zeros.get(..n as usize).unwrap_or(&[]), at)?;
        at += n;
    }
    Ok(())
}

/// False where holes cannot be made.
#[cfg(target_os = "linux")]
fn punch(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    use nix::fcntl::{fallocate, FallocateFlags};
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (offset, len) = (file_offset(offset)?, file_offset(len)?);
    loop {
        match fallocate(file, flags, offset, len) {
            Ok(()) => return Ok(true),
            Err(nix::Error::EINTR) => (),
            Err(nix::Error::EOPNOTSUPP | nix::Error::ENOSYS) => return Ok(false),
            Err(err) => return Err(err.into()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn punch(_file: &File, _offset: u64, _len: u64) -> io::Result<bool> {
    Ok(false)
}

/// The room on a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    pub bytes: u64,
    /// What root could still write.
    pub bytes_free: u64,
    /// What everybody could still write.
    pub bytes_avail: u64,
    /// Zero where inodes are made as needed.
    pub inodes: u64,
    pub inodes_avail: u64,
}

impl From<Statvfs> for Space {
    // The types of the fields differ between systems.
    #[allow(clippy::unnecessary_cast)]
    fn from(vfs: Statvfs) -> Space {
        let unit = vfs.fragment_size() as u64;
        Space {
            bytes: (vfs.blocks() as u64).saturating_mul(unit),
            bytes_free: (vfs.blocks_free() as u64).saturating_mul(unit),
            bytes_avail: (vfs.blocks_available() as u64).saturating_mul(unit),
            inodes: vfs.files() as u64,
            inodes_avail: vfs.files_available() as u64,
        }
    }
}

pub fn statvfs(path: &Path) -> io::Result<Space> {
    Ok(nix::sys::statvfs::statvfs(path)?.into())
}

pub fn fstatvfs(fd: impl AsFd) -> io::Result<Space> {
    Ok(nix::sys::statvfs::fstatvfs(fd)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that has no name any more.
    fn scratch() -> File {
        let name = format!(
            "dfsd-file-{:016x}",
            crate::sys::random::random_u64().unwrap()
        );
        let path = std::env::temp_dir().join(name);
        let mut options = std::fs::OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).open(&path);
        std::fs::remove_file(&path).unwrap();
        file.unwrap()
    }

    #[test]
    fn many_slices_and_empty_ones() {
        let file = scratch();
        let parts: Vec<Vec<u8>> = (0..3000).map(|i| vec![i as u8; i % 5]).collect();
        let mut iov: Vec<IoSlice> = parts.iter().map(|part| IoSlice::new(part)).collect();
        pwritev_all(&file, &mut iov, 7).unwrap();
        fdatasync(&file).unwrap();
        let mut want = vec![0; 7];
        want.extend(parts.concat());
        let mut got = vec![0; want.len()];
        file.read_exact_at(&mut got, 0).unwrap();
        assert_eq!(got, want);
        assert_eq!(file.metadata().unwrap().len(), want.len() as u64);
        pwritev_all(&file, &mut [], 0).unwrap();
        let err = pwritev_all(&file, &mut [IoSlice::new(b"x")], 1 << 63).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::EFBIG));
    }

    #[test]
    fn holes_read_as_zeros_and_keep_the_size() {
        let file = scratch();
        file.write_all_at(&[1; 20_000], 0).unwrap();
        punch_hole(&file, 100, 10_000).unwrap();
        punch_hole(&file, 19_990, 50_000).unwrap();
        punch_hole(&file, 5, 0).unwrap();
        let mut want = vec![1; 20_000];
        want[100..10_100].fill(0);
        want[19_990..].fill(0);
        let mut got = vec![2; 20_000];
        file.read_exact_at(&mut got, 0).unwrap();
        assert_eq!(got, want);
        assert_eq!(file.metadata().unwrap().len(), 20_000);
    }

    #[test]
    fn room() {
        let file = scratch();
        allocate(&file, 0, 1 << 20).unwrap();
        let space = fstatvfs(&file).unwrap();
        assert!(space.bytes >= space.bytes_free && space.bytes_free >= space.bytes_avail);
        assert_eq!(statvfs(&std::env::temp_dir()).unwrap().bytes, space.bytes);
        fsync_dir(&std::env::temp_dir()).unwrap();
    }
}
