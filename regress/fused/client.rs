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

//! What programs do, as calls that run both against the kernel of this
//! machine (here) and against the one that vnode.rs plays.

#![forbid(unsafe_code)]

use crate::tree::Tree;
use crate::Mount;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, AT_FDCWD};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags};
use nix::Result;
use std::os::fd::{IntoRawFd, OwnedFd};

/// What stat(2) tells, as far as it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub ino: u64,
    pub size: u64,
    pub mode: u32,
    pub nlink: u64,
    pub uid: u32,
    pub gid: u32,
    pub atime: (i64, i64),
    pub mtime: (i64, i64),
}

/// What statfs(2) tells, in the same manner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub bytes: u64,
    pub files: u64,
    pub name_max: u64,
}

/// System calls on one mount; paths are relative to it.
pub trait Client: Sync {
    type File: Send + Sync;

    fn tree(&self) -> &Tree;
    fn open(&self, path: &str, flags: OFlag, mode: u32) -> Result<Self::File>;
    fn close(&self, file: Self::File) -> Result<()>;
    fn read(&self, file: &Self::File, buf: &mut [u8]) -> Result<usize>;
    fn write(&self, file: &Self::File, bytes: &[u8]) -> Result<usize>;
    fn pread(&self, file: &Self::File, buf: &mut [u8], offset: u64) -> Result<usize>;
    fn pwrite(&self, file: &Self::File, bytes: &[u8], offset: u64) -> Result<usize>;
    fn fstat(&self, file: &Self::File) -> Result<Stat>;
    fn fsync(&self, file: &Self::File) -> Result<()>;
    fn ftruncate(&self, file: &Self::File, size: u64) -> Result<()>;
    fn stat(&self, path: &str) -> Result<Stat>;
    fn readdir(&self, path: &str) -> Result<Vec<(String, u64)>>;
    fn readlink(&self, path: &str) -> Result<String>;
    fn rename(&self, from: &str, to: &str) -> Result<()>;
    fn link(&self, from: &str, to: &str) -> Result<()>;
    fn symlink(&self, target: &str, path: &str) -> Result<()>;
    fn unlink(&self, path: &str) -> Result<()>;
    fn mkdir(&self, path: &str, mode: u32) -> Result<()>;
    fn rmdir(&self, path: &str) -> Result<()>;
    fn mkfifo(&self, path: &str, mode: u32) -> Result<()>;
    fn chmod(&self, path: &str, mode: u32) -> Result<()>;
    fn chown(&self, path: &str, uid: u32, gid: u32) -> Result<()>;
    fn utimes(&self, path: &str, atime: (i64, i64), mtime: (i64, i64)) -> Result<()>;
    fn truncate(&self, path: &str, size: u64) -> Result<()>;
    fn statfs(&self) -> Result<Space>;

    /// A file of this contents, whatever was there.
    fn put(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let file = self.open(path, flags, 0o644)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let n = self.write(&file, rest)?;
            rest = &rest[n..];
        }
        self.close(file)
    }

    fn get(&self, path: &str) -> Result<Vec<u8>> {
        let file = self.open(path, OFlag::O_RDONLY, 0)?;
        let (mut bytes, mut buf) = (Vec::new(), vec![0; 1 << 20]);
        loop {
            match self.read(&file, &mut buf)? {
                0 => break,
                n => bytes.extend_from_slice(&buf[..n]),
            }
        }
        self.close(file)?;
        Ok(bytes)
    }

    /// Exactly these bytes; a failure if the file ends before.
    fn pread_exact(&self, file: &Self::File, buf: &mut [u8], offset: u64) {
        let mut n = 0;
        while n < buf.len() {
            let at = offset + n as u64;
            let got = self.pread(file, &mut buf[n..], at).unwrap();
            assert!(got > 0, "the end at {at}");
            n += got;
        }
    }

    fn exists(&self, path: &str) -> bool {
        self.stat(path).is_ok()
    }

    /// Without "." and "..".
    fn names(&self, path: &str) -> Vec<String> {
        let names = self.readdir(path).unwrap().into_iter();
        names
            .map(|(name, _)| name)
            .filter(|name| name != "." && name != "..")
            .collect()
    }
}

impl From<nix::sys::stat::FileStat> for Stat {
    // Not everywhere of the same width.
    #[allow(clippy::unnecessary_cast)]
    fn from(st: nix::sys::stat::FileStat) -> Self {
        Stat {
            ino: st.st_ino,
            size: st.st_size as u64,
            mode: st.st_mode,
            nlink: st.st_nlink as u64,
            uid: st.st_uid,
            gid: st.st_gid,
            atime: (st.st_atime, st.st_atime_nsec),
            mtime: (st.st_mtime, st.st_mtime_nsec),
        }
    }
}

fn mode(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode as nix::sys::stat::mode_t)
}

impl Client for Mount {
    type File = OwnedFd;

    fn tree(&self) -> &Tree {
        &self.tree
    }

    fn open(&self, path: &str, flags: OFlag, bits: u32) -> Result<OwnedFd> {
        nix::fcntl::open(&self.path(path), flags | OFlag::O_CLOEXEC, mode(bits))
    }

    fn close(&self, file: OwnedFd) -> Result<()> {
        nix::unistd::close(file.into_raw_fd())
    }

    fn read(&self, file: &OwnedFd, buf: &mut [u8]) -> Result<usize> {
        nix::unistd::read(file, buf)
    }

    fn write(&self, file: &OwnedFd, bytes: &[u8]) -> Result<usize> {
        nix::unistd::write(file, bytes)
    }

    fn pread(&self, file: &OwnedFd, buf: &mut [u8], offset: u64) -> Result<usize> {
        nix::sys::uio::pread(file, buf, offset as i64)
    }

    fn pwrite(&self, file: &OwnedFd, bytes: &[u8], offset: u64) -> Result<usize> {
        nix::sys::uio::pwrite(file, bytes, offset as i64)
    }

    fn fstat(&self, file: &OwnedFd) -> Result<Stat> {
        nix::sys::stat::fstat(file).map(Stat::from)
    }

    fn fsync(&self, file: &OwnedFd) -> Result<()> {
        nix::unistd::fsync(file)
    }

    fn ftruncate(&self, file: &OwnedFd, size: u64) -> Result<()> {
        nix::unistd::ftruncate(file, size as i64)
    }

    fn stat(&self, path: &str) -> Result<Stat> {
        nix::sys::stat::stat(&self.path(path)).map(Stat::from)
    }

    fn readdir(&self, path: &str) -> Result<Vec<(String, u64)>> {
        let dir = Dir::open(&self.path(path), OFlag::O_RDONLY, Mode::empty())?;
        dir.into_iter()
            .map(|entry| {
                let entry = entry?;
                let name = entry.file_name().to_str().unwrap().to_string();
                Ok((name, entry.ino()))
            })
            .collect()
    }

    fn readlink(&self, path: &str) -> Result<String> {
        let target = nix::fcntl::readlink(&self.path(path))?;
        Ok(target.into_string().unwrap())
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        nix::fcntl::renameat(AT_FDCWD, &self.path(from), AT_FDCWD, &self.path(to))
    }

    fn link(&self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (self.path(from), self.path(to));
        nix::unistd::linkat(AT_FDCWD, &from, AT_FDCWD, &to, LinkatFlags::empty())
    }

    fn symlink(&self, target: &str, path: &str) -> Result<()> {
        nix::unistd::symlinkat(target, AT_FDCWD, &self.path(path))
    }

    fn unlink(&self, path: &str) -> Result<()> {
        nix::unistd::unlink(&self.path(path))
    }

    fn mkdir(&self, path: &str, bits: u32) -> Result<()> {
        nix::unistd::mkdir(&self.path(path), mode(bits))
    }

    fn rmdir(&self, path: &str) -> Result<()> {
        nix::unistd::unlinkat(AT_FDCWD, &self.path(path), UnlinkatFlags::RemoveDir)
    }

    fn mkfifo(&self, path: &str, bits: u32) -> Result<()> {
        nix::sys::stat::mknod(&self.path(path), SFlag::S_IFIFO, mode(bits), 0)
    }

    fn chmod(&self, path: &str, bits: u32) -> Result<()> {
        let (path, flags) = (self.path(path), FchmodatFlags::FollowSymlink);
        nix::sys::stat::fchmodat(AT_FDCWD, &path, mode(bits), flags)
    }

    fn chown(&self, path: &str, uid: u32, gid: u32) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        nix::unistd::chown(&self.path(path), Some(uid), Some(gid))
    }

    fn utimes(&self, path: &str, atime: (i64, i64), mtime: (i64, i64)) -> Result<()> {
        let [atime, mtime] = [atime, mtime].map(|(sec, nsec)| TimeSpec::new(sec, nsec));
        let (path, flags) = (self.path(path), UtimensatFlags::FollowSymlink);
        nix::sys::stat::utimensat(AT_FDCWD, &path, &atime, &mtime, flags)
    }

    fn truncate(&self, path: &str, size: u64) -> Result<()> {
        nix::unistd::truncate(&self.path(path), size as i64)
    }

    fn statfs(&self) -> Result<Space> {
        let st = nix::sys::statvfs::statvfs(&self.path(""))?;
        Ok(Space {
            bytes: st.blocks() * st.fragment_size(),
            files: st.files(),
            name_max: st.name_max(),
        })
    }
}

/// The error of a call that must fail.
pub fn fails<T>(result: Result<T>) -> Errno {
    match result {
        Ok(_) => panic!("it succeeded"),
        Err(e) => e,
    }
}
