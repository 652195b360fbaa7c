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

//! The two sockets to raftd: requests out, replies and invalidations in, and
//! the requests in flight.  fused only; nobody here ever waits for raftd but
//! the threads made for it.
//!
//! ```text
//!   device readers --send--+--> socket            usually at once,
//!                          +--> queue --writer--> else when there is room
//!   reader, one per lane  <--  socket             answers the kernel itself
//! ```

#![forbid(unsafe_code)]

use crate::ops::{changed_inode, Ops, Then};
use crate::{lock, spawn, wait};
use common::fs::{InodeNo, ReqId};
use common::imsg::{Imsg, ImsgReader, ImsgWriter, Imsgbuf};
use common::msg::{FsOp, FusedToRaftd, RaftdToFused, FUSED_FRAME_MAX};
use common::sys::poll::{self, PollFlags};
use common::{fatal, fatalx};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

/// Payloads up to this size are copied behind their message, and need not go
/// over the bulk lane.
pub const SMALL: usize = 16384;
/// Buffers kept for larger ones.
const SPARE_PAYLOADS: usize = 4;
/// Bytes that may wait for raftd; beyond, writers wait.
const PARKED_MAX: usize = 32 << 20;

/// The sending half of one socket to raftd.
pub struct Lane {
    socket: Arc<OwnedFd>,
    writer: Mutex<ImsgWriter<FusedToRaftd>>,
    /// Something is queued that the socket did not take.
    queued: Condvar,
    /// What was queued has become less.
    room: Condvar,
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
}

pub type Reader = ImsgReader<RaftdToFused>;

/// The bytes of a WRITE on their way.
struct Payload {
    bytes: Vec<u8>,
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE_PAYLOADS {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}

fn lost() -> ! {
    // The kernel then answers ENOTCONN: at once, and so that nobody writes
    // into the directory below.
    fatalx!("lost raftd")
}

impl Lane {
    pub fn new(socket: OwnedFd) -> (Arc<Lane>, Reader) {
        let mut imsgbuf = Imsgbuf::new(socket, FUSED_FRAME_MAX);
        imsgbuf.allow_fdpass();
        // The version frame.
        if imsgbuf.write().is_err() {
            lost();
        }
        let (reader, writer) = imsgbuf.into_split();
        let lane = Arc::new(Lane {
            socket: writer.socket(),
            writer: Mutex::new(writer),
            queued: Condvar::new(),
            room: Condvar::new(),
            spare: Arc::default(),
        });
        let drain = lane.clone();
        spawn("writer", move || drain.drain());
        (lane, reader)
    }

    pub fn send(&self, msg: &FusedToRaftd) {
        self.send_with(msg, &[]);
    }

    /// Never blocks: what the socket does not take now the writer sends.
    pub fn send_with(&self, msg: &FusedToRaftd, payload: &[u8]) {
        let mut writer = lock(&self.writer);
        let idle = writer.queued_bytes() == 0;
        let composed = match payload.len() <= SMALL {
            true => writer.compose(msg, 0, None, payload),
            false => writer.compose_owned(msg, 0, None, self.payload(payload)),
        };
        if let Err(e) = composed {
            fatal!(e, "imsg_compose");
        }
        if !idle {
            return;
        }
        match writer.write() {
            Ok(true) => (),
            Ok(false) => self.queued.notify_one(),
            Err(_) => lost(),
        }
    }

    fn payload(&self, bytes: &[u8]) -> Payload {
        let mut own = lock(&self.spare).pop().unwrap_or_default();
        own.clear();
        own.extend_from_slice(bytes);
        Payload {
            bytes: own,
            spare: self.spare.clone(),
        }
    }

    /// Whether so little waits for raftd that a WRITE may be added.
    pub fn has_room(&self) -> bool {
        lock(&self.writer).queued_bytes() < PARKED_MAX
    }

    /// Waits for that; false if it took until `deadline`.
    pub fn wait_room(&self, deadline: Instant) -> bool {
        let mut writer = lock(&self.writer);
        while writer.queued_bytes() >= PARKED_MAX {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            writer = crate::wait_timeout(&self.room, writer, left);
        }
        true
    }

    /// The writer thread: sends what is queued as the socket takes it.
    fn drain(&self) {
        let mut writer = lock(&self.writer);
        loop {
            while writer.queued_bytes() == 0 {
                writer = wait(&self.queued, writer);
            }
            drop(writer);
            if poll::wait(self.socket.as_fd(), PollFlags::POLLOUT, None).is_err() {
                lost();
            }
            writer = lock(&self.writer);
            if writer.write().is_err() {
                lost();
            }
            if writer.queued_bytes() < PARKED_MAX {
                self.room.notify_all();
            }
        }
    }
}

/// Starts the thread that reads one lane.
pub fn start(ops: &Arc<Ops>, mut reader: Reader) {
    let ops = ops.clone();
    spawn("raftd", move || loop {
        match reader.recv_blocking() {
            Ok(Some(imsg)) => dispatch_raftd(&ops, imsg),
            Ok(None) => lost(),
            Err(e) => fatal!(e, "imsg_get: raftd"),
        }
    });
}

fn dispatch_raftd(ops: &Ops, mut imsg: Imsg<RaftdToFused>) {
    let fd = imsg.fd.take();
    match imsg.msg {
        RaftdToFused::Accepted { id, attr } => ops.accepted(id, attr),
        RaftdToFused::Rep { id, index, result } => {
            let data = imsg.frame.get(imsg.bulk_at..).unwrap_or(&[]);
            ops.answered(id, index, result, fd, data);
        }
        RaftdToFused::InvalInode { ino, data, index } => ops.inval_inode(ino, data, index),
        RaftdToFused::InvalEntry {
            parent,
            name,
            lost,
            index,
        } => ops.inval_entry(parent, &name, lost, index),
        RaftdToFused::Short(short) => ops.short(short),
        RaftdToFused::Orphan { ino } => ops.orphan(ino),
        RaftdToFused::InvalOwner { ino } => ops.inval_owner(ino),
        RaftdToFused::InvalAll { index } => ops.inval_all(index),
        RaftdToFused::Backing { ino } => {
            // Without it the kernel could not deliver it: raftd reads for us.
            if let Some(fd) = fd {
                ops.backing(ino, fd);
            }
        }
        RaftdToFused::Revoke { ino } => ops.revoke(ino),
        RaftdToFused::Quorum(quorum) => ops.quorum(quorum),
        RaftdToFused::LockLost { ino, owner } => ops.lock_lost(ino, owner),
    }
}

/// A request that raftd has not answered for good.
pub struct Request {
    pub deadline: Instant,
    pub then: Then,
    /// The operation, if it leaves something behind when nobody waits for it
    /// any more.
    pub op: Option<FsOp>,
}

/// The requests in flight.
#[derive(Default)]
pub struct Requests {
    last: u64,
    table: BTreeMap<ReqId, Request>,
    deadlines: BTreeSet<(Instant, ReqId)>,
    /// Answered with an error when their time was over, not yet by raftd.
    late: HashMap<ReqId, FsOp>,
    /// When the timer wakes up; None: when it is told to.
    pub alarm: Option<Instant>,
}

impl Requests {
    /// The id that the next request will have.
    pub fn next_id(&self) -> ReqId {
        ReqId(self.last + 1)
    }

    /// All requests before this one are answered.
    pub fn oldest(&self) -> ReqId {
        let first = self.table.first_key_value();
        first.map_or(self.next_id(), |(id, _)| *id)
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub fn insert(&mut self, request: Request) -> ReqId {
        let id = self.next_id();
        self.last = id.0;
        self.put(id, request);
        id
    }

    /// Back in the table, to wait for something else.
    pub fn put(&mut self, id: ReqId, request: Request) {
        self.deadlines.insert((request.deadline, id));
        self.table.insert(id, request);
    }

    pub fn get(&mut self, id: ReqId) -> Option<&mut Request> {
        self.table.get_mut(&id)
    }

    pub fn remove(&mut self, id: ReqId) -> Option<Request> {
        let request = self.table.remove(&id)?;
        self.deadlines.remove(&(request.deadline, id));
        Some(request)
    }

    /// Whether a change of the inode is under way whose time is over.
    pub fn is_late(&self, ino: InodeNo) -> bool {
        self.late.values().any(|op| changed_inode(op) == Some(ino))
    }

    pub fn take_late(&mut self, id: ReqId) -> Option<FsOp> {
        self.late.remove(&id)
    }

    /// A request whose time is over.
    pub fn expire(&mut self, now: Instant) -> Option<(ReqId, Request)> {
        let (_, id) = *self.deadlines.first().filter(|(at, _)| *at <= now)?;
        let mut request = self.remove(id)?;
        if let Some(op) = request.op.take() {
            self.late.insert(id, op);
        }
        Some((id, request))
    }

    /// How long until the next one is.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn requests_end_in_time() {
        let mut requests = Requests::default();
        let start = Instant::now();
        let mut insert = |seconds, op| {
            requests.insert(Request {
                deadline: start + Duration::from_secs(seconds),
                then: Then::Held(Box::new(|_, _| ())),
                op,
            })
        };
        let long = insert(30, None);
        let ino = InodeNo(2);
        let open = FsOp::Open {
            ino,
            write: false,
            held: false,
        };
        let short = insert(1, Some(open));
        assert_eq!(requests.oldest(), long);
        assert!(requests.expire(start).is_none());
        let at = requests.next_deadline().unwrap();
        assert_eq!(requests.expire(at).map(|(id, _)| id), Some(short));
        assert!(requests.expire(at).is_none());
        assert!(requests.remove(short).is_none());
        assert!(requests.take_late(short).is_some());
        assert!(requests.take_late(short).is_none());
        assert!(requests.remove(long).is_some());
        assert_eq!(requests.next_deadline(), None);
        assert_eq!(requests.oldest(), requests.next_id());
    }
}
