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

//! The backing files that raftd passes at open, and the threads that read
//! them, so that whoever reads the device never waits for a disk.  fused
//! only; never opens a path.
//!
//! Once raftd asks for a backing file back, its acknowledgement leaves with
//! the last reader that still used it.

#![forbid(unsafe_code)]

use crate::ahead::{Round, AHEAD};
use crate::ops::{DataReply, Ops};
use crate::raftd::Lane;
use crate::{lock, spawn, wait};
use common::fs::{InodeNo, IO_MAX};
use common::msg::FusedToRaftd;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

const THREADS: usize = 4;

pub struct Backing {
    ino: InodeNo,
    /// None only while dropped.
    file: Option<File>,
    control: Arc<Lane>,
    revoked: AtomicBool,
}

impl Backing {
    pub fn new(ino: InodeNo, fd: OwnedFd, control: Arc<Lane>) -> Arc<Self> {
        Arc::new(Backing {
            ino,
            file: Some(File::from(fd)),
            control,
            revoked: AtomicBool::new(false),
        })
    }

    /// raftd wants to know when the last use is over.
    pub fn revoke(self: Arc<Self>) {
        self.revoked.store(true, Ordering::Release);
    }

    /// Fills `buf` as far as the file goes.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(file) = &self.file else {
            return Ok(0);
        };
        let mut n = 0;
        while let Some(rest) = buf.get_mut(n..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, offset.saturating_add(n as u64)) {
                Ok(0) => break,
                Ok(got) => n += got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => (),
                Err(e) => return Err(e),
            }
        }
        Ok(n)
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        self.file = None;
        if self.revoked.load(Ordering::Acquire) {
            self.control
                .send(&FusedToRaftd::RevokeAck { ino: self.ino });
        }
    }
}

/// A READ of a backing file.
pub struct Read {
    pub ino: InodeNo,
    pub offset: u64,
    /// What was asked for.
    pub size: u32,
    /// AHEAD is read, for this round.
    pub fill: Option<Round>,
    pub backing: Arc<Backing>,
    /// It came up short before.
    pub again: bool,
    pub reply: DataReply,
}

/// Reads that no thread has taken yet.
#[derive(Default)]
pub struct Reads {
    queue: Mutex<VecDeque<Read>>,
    ready: Condvar,
}

impl Reads {
    pub fn push(&self, read: Read) {
        lock(&self.queue).push_back(read);
        self.ready.notify_one();
    }

    fn next(&self) -> Read {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(read) = queue.pop_front() {
                return read;
            }
            queue = wait(&self.ready, queue);
        }
    }
}

/// Starts the readers; each has one buffer for all its reads.
pub fn start(ops: &Arc<Ops>) {
    for _ in 0..THREADS {
        let ops = ops.clone();
        spawn("reader", move || {
            let mut buf = Vec::new();
            loop {
                let read = ops.reads.next();
                let size = match read.fill {
                    Some(_) => AHEAD as usize,
                    None => (read.size as usize).min(IO_MAX),
                };
                if buf.len() < size {
                    buf.resize(size, 0);
                }
                ops.pread(read, buf.get_mut(..size).unwrap_or(&mut []));
            }
        });
    }
}
