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

//! Inodes: their records, and the keys of the whole file system in the
//! metadata store.  Runs in raftd, pure; the read side serves fused, the
//! write side is for apply alone.
//!
//! Integers in keys are big-endian, so that keys sort like what they mean.
//! Values are postcard but for the bitmap; fields are only ever appended
//! together with a new format version.
//!
//! ```text
//! key                       value
//! s                         Super: counters, room, floor      (space.rs)
//! i ino:8                   Inode
//! d parent:8 name           Entry {ino, kind, cookie}         (dirent.rs)
//! c parent:8 cookie:8       Listed {ino, kind, name}          (dirent.rs)
//! e ino:8 extent:8          32 bytes, bit n of word n/64 (big-endian words)
//!                           is 4 KiB block n of 1 MiB extent; never zero
//! o ino:8                   sessions that may hold an orphan  (orphan.rs)
//! t session:8               Session                           (dedup.rs)
//! r session:8 seq:8         Outcome                           (dedup.rs)
//! k node:8                  Capacity                          (space.rs)
//! x ino:8 name              value of an extended attribute    (xattr.rs)
//! q tree:8                  Quota                             (quota.rs)
//! a tree:8 dir:8            Cookie: adopted up to there       (quota.rs)
//! l ino:8                   Locks: held, waiting              (lock.rs)
//! w session:8 mount:8 ino:8 1: somebody of the mount is in Locks
//! v session:8 mount:8 owner:8 ticket:8
//!                           ino:8, where the owner waits
//! f session:8 ino:8         1: lost a lock there, may not write
//! n                         how many locks there are
//! ```

#![forbid(unsafe_code)]

use crate::store::meta::{MetaError, View, Writer};
use common::fs::{
    Attr, Cookie, FsError, InodeNo, Time, TreeNo, BLOCK, INLINE_MAX, S_IFDIR, S_IFLNK, S_IFMT,
    S_IFREG, S_ISGID, S_ISUID,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why an operation did not go through: refused by a rule, or broken below.
#[derive(Debug)]
pub enum ReadError {
    Fs(FsError),
    Meta(MetaError),
}

impl From<FsError> for ReadError {
    fn from(e: FsError) -> ReadError {
        ReadError::Fs(e)
    }
}

impl From<MetaError> for ReadError {
    fn from(e: MetaError) -> ReadError {
        ReadError::Meta(e)
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Fs(e) => e.fmt(f),
            ReadError::Meta(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for ReadError {}

/// A tag and one number.
pub(super) fn key(tag: u8, n: u64) -> [u8; 9] {
    let mut key = [tag; 9];
    key[1..].copy_from_slice(&n.to_be_bytes());
    key
}

/// A tag and two numbers.
pub(super) fn key2(tag: u8, n: u64, m: u64) -> [u8; 17] {
    let mut key = [tag; 17];
    key[1..9].copy_from_slice(&n.to_be_bytes());
    key[9..].copy_from_slice(&m.to_be_bytes());
    key
}

/// The number at this place of a key that came out of the store.
pub(super) fn number(key: &[u8], at: usize) -> Result<u64, MetaError> {
    let bytes = key.get(at..at + 8).and_then(|b| b.try_into().ok());
    bytes
        .map(u64::from_be_bytes)
        .ok_or(MetaError::Corrupt("key"))
}

const INODE: u8 = b'i';

/// Where the inode is stored.
pub fn inode_key(ino: InodeNo) -> [u8; 9] {
    key(INODE, ino.0)
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// Type and permissions.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub data_version: u64,
    pub contents: Contents,
    /// Bytes of the names and values of all extended attributes.
    pub xattrs: u32,
    /// Whose quota it is charged to.
    pub tree: TreeNo,
}

/// What the inode is beside its attributes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Contents {
    /// All bytes of a small file.
    Inline(#[serde(with = "as_bytes")] Vec<u8>),
    /// A file whose bytes are in its backing file; blocks of BLOCK bytes.
    Backing { size: u64, blocks: u64 },
    /// The target.
    Symlink(#[serde(with = "as_bytes")] Vec<u8>),
    Directory {
        parent: InodeNo,
        /// For the next entry.
        cookie: Cookie,
        entries: u64,
    },
    /// Device, pipe or socket.
    Special,
}

impl Inode {
    pub fn kind(&self) -> u32 {
        self.mode & S_IFMT
    }

    pub fn is_dir(&self) -> bool {
        self.kind() == S_IFDIR
    }

    pub fn size(&self) -> u64 {
        match &self.contents {
            Contents::Inline(bytes) | Contents::Symlink(bytes) => bytes.len() as u64,
            Contents::Backing { size, .. } => *size,
            Contents::Directory { .. } => BLOCK,
            Contents::Special => 0,
        }
    }

    /// What it is charged for in blocks.
    pub fn blocks(&self) -> u64 {
        self.contents_blocks() + self.xattr_blocks()
    }

    /// A small file has one, as if it were not inline, and keeps it when it
    /// moves out.
    pub fn contents_blocks(&self) -> u64 {
        match &self.contents {
            Contents::Inline(bytes) => u64::from(!bytes.is_empty()),
            Contents::Backing { blocks, .. } => *blocks,
            _ => 0,
        }
    }

    /// What it takes of the metadata beyond what each inode may: further
    /// names, a target that is longer than a small file, and many attributes.
    pub fn extra(&self) -> u64 {
        let names = match &self.contents {
            Contents::Directory { .. } => 0,
            Contents::Symlink(target) if target.len() > INLINE_MAX => self.more_names() + 2,
            _ => self.more_names(),
        };
        names + self.xattr_blocks()
    }

    fn more_names(&self) -> u64 {
        u64::from(self.nlink.saturating_sub(1))
    }

    pub fn attr(&self, ino: InodeNo) -> Attr {
        Attr {
            ino,
            size: self.size(),
            blocks: self.blocks() * (BLOCK / 512),
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            data_version: self.data_version,
            xattrs: self.xattrs > 0,
        }
    }

    /// The contents of a file or the entries of a directory have changed.
    pub(super) fn touch(&mut self, time: Time) {
        self.mtime = time;
        self.ctime = time;
        self.data_version += 1;
    }

    /// What the kernel does to a program that the unprivileged may change.
    pub(super) fn kill_priv(&mut self) {
        if self.is_dir() {
            return;
        }
        self.mode &= !S_ISUID;
        if self.mode & 0o010 != 0 {
            self.mode &= !S_ISGID;
        }
    }
}

/// The record, or None if there is no such inode.
pub fn get(v: &View<'_>, ino: InodeNo) -> Result<Option<Inode>, MetaError> {
    v.load(&inode_key(ino), "inode")
}

/// The record of an inode that a caller names by number.
pub fn load(v: &View<'_>, ino: InodeNo) -> Result<Inode, ReadError> {
    Ok(get(v, ino)?.ok_or(FsError::Stale)?)
}

/// The record of an inode that has a name.
pub(super) fn linked(v: &View<'_>, ino: InodeNo) -> Result<Inode, MetaError> {
    get(v, ino)?.ok_or(MetaError::Corrupt("dirent"))
}

pub(super) fn put(tx: &mut Writer<'_>, ino: InodeNo, inode: &Inode) -> Result<(), MetaError> {
    tx.save(&inode_key(ino), inode, "inode")
}

pub(super) fn delete(tx: &mut Writer<'_>, ino: InodeNo) -> Result<(), MetaError> {
    tx.delete(&inode_key(ino))
}

pub fn getattr(v: &View<'_>, ino: InodeNo) -> Result<Attr, ReadError> {
    Ok(load(v, ino)?.attr(ino))
}

pub fn readlink(v: &View<'_>, ino: InodeNo) -> Result<Vec<u8>, ReadError> {
    match load(v, ino)?.contents {
        Contents::Symlink(target) => Ok(target),
        _ => Err(FsError::Invalid.into()),
    }
}

/// The bytes, or where they are.
pub fn contents(v: &View<'_>, ino: InodeNo) -> Result<Contents, ReadError> {
    Ok(load(v, ino)?.contents)
}

/// The kind bits of a mode fit a byte.
pub(super) fn kind_byte(mode: u32) -> u8 {
    ((mode & S_IFMT) >> 12) as u8
}

pub(super) fn kind_bits(byte: u8) -> u32 {
    u32::from(byte) << 12
}

pub(super) fn is_regular(mode: u32) -> bool {
    mode & S_IFMT == S_IFREG
}

pub(super) const SYMLINK_MODE: u32 = S_IFLNK | 0o777;

/// Byte strings in one piece; serde takes a Vec<u8> byte by byte.
mod as_bytes {
    use serde::de::{Deserializer, Error, Visitor};
    use serde::Serializer;
    use std::fmt;

    pub fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }

        d.deserialize_byte_buf(Bytes)
    }
}
