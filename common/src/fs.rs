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

//! The vocabulary of the file system: ids, attributes, errors and the limits
//! that all processes must agree on.  Pure data; does no I/O.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A new type over an integer, with Display, ordering and serde.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A member of the cluster, as named in dfsd.conf.  Never reused.
    NodeId(u64)
);
id!(
    /// An inode of the tree.  Never reused; the root is 1, as in FUSE.
    InodeNo(u64)
);
id!(
    /// One run of one node's raftd: the log index of the entry that opened it.
    SessionId(u64)
);
id!(
    /// An open file of one fused.
    Fh(u64)
);
id!(
    /// One request of one fused to raftd.
    ReqId(u64)
);
id!(
    /// A directory tree that is counted by itself, because it has a quota: the
    /// log index of the entry that made it.  Never reused.
    TreeNo(u64)
);
id!(
    /// Position of an entry in its directory, stable while the entry lives.
    Cookie(u64)
);

impl InodeNo {
    pub const ROOT: InodeNo = InodeNo(1);
}

impl TreeNo {
    /// Counted with the whole only.
    pub const NONE: TreeNo = TreeNo(0);
}

/// Longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;
/// Longest target of a symbolic link, in bytes.
pub const SYMLINK_MAX: usize = 4095;
/// Most links to one inode.
pub const LINK_MAX: u32 = 65000;
/// Largest size of a file: what every file system below can hold (ext4 ends
/// at 16 TiB), so that no node refuses what the log allows.
pub const FILE_MAX: u64 = 1 << 43;
/// Most bytes that one operation reserves: it is done in one step, on all nodes.
pub const RESERVE_MAX: u64 = 64 << 30;
/// Most bytes in one WRITE or READ.
pub const IO_MAX: usize = 1 << 20;
/// Contents up to this size live in the inode record, not in a backing file.
pub const INLINE_MAX: usize = 1536;
/// Unit of accounting and of checksums, in bytes.
pub const BLOCK: u64 = 4096;

/// File types, as in the S_IFMT bits of a mode.
pub const S_IFMT: u32 = 0o170000;
pub const S_IFREG: u32 = 0o100000;
pub const S_IFDIR: u32 = 0o040000;
pub const S_IFLNK: u32 = 0o120000;
pub const S_ISUID: u32 = 0o4000;
pub const S_ISGID: u32 = 0o2000;
pub const S_ISVTX: u32 = 0o1000;

/// Seconds and nanoseconds since the epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Time {
    pub sec: i64,
    pub nsec: u32,
}

/// What stat(2) tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    pub ino: InodeNo,
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Type and permissions.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    /// Moves with every change of the contents; equal means same bytes.
    pub data_version: u64,
    /// There are extended attributes.
    pub xattrs: bool,
}

impl Attr {
    pub fn is_dir(&self) -> bool {
        self.mode & S_IFMT == S_IFDIR
    }

    pub fn is_symlink(&self) -> bool {
        self.mode & S_IFMT == S_IFLNK
    }

    pub fn is_file(&self) -> bool {
        self.mode & S_IFMT == S_IFREG
    }
}

/// After so many seconds the time of access moves in any case.
const ATIME_SECONDS: i64 = 86400;

/// The second from which on an access must be noted: at once if the last one
/// that was is not after the last change.
pub fn atime_due(attr: &Attr) -> i64 {
    match attr.atime <= attr.mtime || attr.atime <= attr.ctime {
        true => i64::MIN,
        false => attr.atime.sec.saturating_add(ATIME_SECONDS),
    }
}

/// What readdir(2) tells, and with `attr` what readdirplus does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dirent {
    pub ino: InodeNo,
    /// Where to go on after this entry.
    pub next: Cookie,
    /// S_IFMT bits.
    pub kind: u32,
    pub name: Vec<u8>,
    pub attr: Option<Attr>,
}

/// What statfs(2) tells; sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statfs {
    pub bytes: u64,
    pub bytes_free: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// Who asks: the caller's file system ids, as the kernel tells them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cred {
    pub uid: u32,
    pub gid: u32,
}

/// One attribute time of a setattr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// The leader's clock when the operation is proposed.
    Now,
    At(Time),
}

/// The attributes to change; None leaves one as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttr {
    /// Permission bits only.
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    /// Drop capabilities, set-user-id and, for group executables, set-group-id
    /// bits, since a caller without privilege writes, truncates or gives away the file.
    pub kill_priv: bool,
}

/// What fallocate(2) does to a range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallocate {
    pub how: FallocateHow,
    pub offset: u64,
    pub len: u64,
    /// The size stays, also where the range goes beyond it.
    pub keep_size: bool,
    /// As in SetAttr.
    pub kill_priv: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FallocateHow {
    /// Takes room for the range; no bytes change.
    Reserve,
    /// Zeros, and the room is given back.
    Punch,
    /// Zeros, with room for them.
    Zero,
}

/// Why the file system refuses.  Errno is chosen by fused alone.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FsError {
    NotFound,
    Exists,
    NotDir,
    IsDir,
    NotEmpty,
    /// The inode is gone, or is no longer what it was looked up as.
    Stale,
    NameTooLong,
    Invalid,
    /// A directory would become its own ancestor.
    Loop,
    TooManyLinks,
    TooBig,
    NoSpace,
    NoPermission,
    NotOwner,
    ReadOnly,
    /// The operation is not there.
    Unsupported,
    /// No quorum, so nothing can be agreed on.
    NoQuorum,
    /// Not answered within the bound; it may still happen.
    TimedOut,
    /// The session that held the handle has ended, or the store has failed.
    Io,
    /// The limit of the directory tree or of the cluster is reached.
    Quota,
    /// No such extended attribute.
    NoAttr,
    /// The buffer is too small for the answer.
    Range,
    /// A value is too long.
    TooLong,
    /// Somebody else has a lock that is in the way.
    WouldBlock,
    /// To wait for the lock would be to wait for oneself.
    Deadlock,
    /// The two names belong to trees that are counted apart.
    CrossTree,
    /// Nothing of that kind from the offset on.
    NoOffset,
    /// In use in a way that forbids it.
    Busy,
    /// There are as many locks as there may be.
    NoLocks,
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FsError::NotFound => "not found",
            FsError::Exists => "exists",
            FsError::NotDir => "not a directory",
            FsError::IsDir => "is a directory",
            FsError::NotEmpty => "directory not empty",
            FsError::Stale => "stale inode",
            FsError::NameTooLong => "name too long",
            FsError::Invalid => "invalid argument",
            FsError::Loop => "would make a loop",
            FsError::TooManyLinks => "too many links",
            FsError::TooBig => "file too large",
            FsError::NoSpace => "no space left",
            FsError::NoPermission => "permission denied",
            FsError::NotOwner => "not owner",
            FsError::ReadOnly => "read-only mount",
            FsError::Unsupported => "not supported",
            FsError::NoQuorum => "no quorum",
            FsError::TimedOut => "timed out",
            FsError::Io => "input/output error",
            FsError::Quota => "quota exceeded",
            FsError::NoAttr => "no such attribute",
            FsError::Range => "buffer too small",
            FsError::TooLong => "value too long",
            FsError::WouldBlock => "locked",
            FsError::Deadlock => "deadlock",
            FsError::CrossTree => "of another tree",
            FsError::NoOffset => "nothing there",
            FsError::Busy => "busy",
            FsError::NoLocks => "too many locks",
        })
    }
}

impl std::error::Error for FsError {}

/// A name is 1 to 255 bytes without `/` and NUL, and neither `.` nor `..`.
pub fn check_name(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_MAX {
        return Err(FsError::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|&b| b == b'/' || b == 0)
    {
        return Err(FsError::Invalid);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_access() {
        let time = |sec, nsec| Time { sec, nsec };
        let mut attr = Attr {
            atime: time(100, 5),
            mtime: time(100, 4),
            ctime: time(100, 4),
            ..Attr::default()
        };
        assert_eq!(atime_due(&attr), 100 + 86400);
        attr.ctime = attr.atime;
        assert_eq!(atime_due(&attr), i64::MIN);
        (attr.ctime, attr.mtime) = (time(0, 0), time(101, 0));
        assert_eq!(atime_due(&attr), i64::MIN);
        attr.atime = time(i64::MAX, 0);
        assert_eq!(atime_due(&attr), i64::MAX);
    }

    #[test]
    fn names() {
        assert_eq!(check_name(b"a"), Ok(()));
        assert_eq!(check_name(&[b'x'; 255]), Ok(()));
        assert_eq!(check_name(&[b'x'; 256]), Err(FsError::NameTooLong));
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert_eq!(check_name(bad), Err(FsError::Invalid));
        }
    }
}
