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

//! The replicated file system: what every node computes alike from the log.
//! Runs in raftd.  Does no I/O of its own, knows no clock, no randomness and
//! no local state, and never waits: the same log gives the same bytes
//! everywhere.

mod accessed;
mod acl;
pub mod apply;
mod contents;
pub mod dedup;
pub mod dirent;
mod fallocate;
pub mod inode;
pub mod lock;
pub mod op;
pub mod orphan;
pub mod quota;
pub mod space;
pub mod xattr;

use common::fs::{Attr, FsError, InodeNo, SessionId};
use serde::{Deserialize, Serialize};

/// What the caller of an operation is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    /// The attributes afterwards.
    Attr(Attr),
    /// A name was made, or with `created` false found by Create.
    Entry {
        attr: Attr,
        created: bool,
    },
    /// Where the bytes went, and the attributes afterwards.
    Written {
        offset: u64,
        attr: Attr,
    },
    /// OpenSession: the id is the entry's log index.
    Session,
    /// The lock is held.
    Locked {
        fence: u64,
    },
    /// It is waited for; Change::Waited says how that ends.
    Waiting {
        ticket: u64,
    },
}

pub type Outcome = Result<Reply, FsError>;

/// What became of one proposal in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Carried out (or refused by a rule) here and now.
    Done(Outcome),
    /// Its seq was carried out by an earlier entry; the stored outcome, or
    /// None when the session had acknowledged it already.
    Duplicate(Option<Outcome>),
    /// A seq before it is missing; nothing was done.
    Gap { expected: u64 },
    /// Its session has ended; nothing was done.
    Retired,
}

/// Bytes to move in backing files, in this order, right after the metadata.
/// Each is an idempotent physical redo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataOp {
    /// Contents leave the inode record: these bytes are the file from now on.
    Spill { ino: InodeNo, contents: Vec<u8> },
    /// The command's payload goes to this offset.
    Write { ino: InodeNo, offset: u64 },
    /// The file has this size; what is beyond is cut, what is new is a hole.
    Truncate { ino: InodeNo, size: u64 },
    /// The inode is gone.  The file goes with the next checkpoint, since a
    /// replay from the last one may still write to it.
    Remove { ino: InodeNo },
    /// These bytes are zeros, as far as the file has them.
    Zero { ino: InodeNo, offset: u64, len: u64 },
    /// The disk shall have room for this range, where it can promise that.
    Reserve {
        ino: InodeNo,
        offset: u64,
        len: u64,
        /// Of the whole file, with the range.
        blocks: u64,
    },
}

/// What kernels may hold a cached copy of, and no longer may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Attributes of the inode; with `data` also its bytes from that offset
    /// to the end.
    Inode { ino: InodeNo, data: Option<u64> },
    /// The inode has another owner.
    Owner { ino: InodeNo },
    /// The entry of that name: made, replaced or removed; `lost` is the inode
    /// that it named before and no longer does.
    Entry {
        parent: InodeNo,
        name: Vec<u8>,
        lost: Option<InodeNo>,
    },
    /// The inode lost its last name and lives on for those who hold it open;
    /// a session without a handle proposes Release.
    Orphan { ino: InodeNo },
    /// The inode's contents have moved from the record to a backing file.
    Spilled { ino: InodeNo },
    /// The inode does not exist any more.
    Gone { ino: InodeNo },
    /// Somebody has waited for a lock long enough: he has it, with that fencing
    /// number, or never will.
    Waited {
        session: SessionId,
        ticket: u64,
        result: Result<u64, FsError>,
    },
    /// The session's lease ran out, and its locks are free: the inode, and the
    /// owner as its mount and number.
    LocksLost {
        session: SessionId,
        locks: Vec<(InodeNo, u64, u64)>,
    },
}

/// All that applying one entry means outside the metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    pub data: Vec<DataOp>,
    pub changes: Vec<Change>,
}
