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

//! Signals for those who wait for a lock.  fused only.
//!
//! That wait alone has no bound, and the library refuses INTERRUPT, upon which
//! the kernel lets no signal end what it has handed over.  So it is looked for
//! who has one to take.  His wait is cancelled, and with the answer to that
//! the call is told EINTR, which the kernel treats as for any file system: the
//! call fails, starts again behind the handler, or the process is dead.

#![forbid(unsafe_code)]

use super::Ops;
use crate::{lock, spawn, wait};
use common::fs::{InodeNo, ReqId};
use common::msg::FusedToRaftd;
use common::sys::pending::Processes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(100);

struct Waiter {
    thread: u32,
    ino: InodeNo,
    interrupted: bool,
}

#[derive(Default)]
pub struct Waiters(HashMap<ReqId, Waiter>);

impl Waiters {
    pub fn begin(&mut self, id: ReqId, thread: u32, ino: InodeNo) {
        let waiter = Waiter {
            thread,
            ino,
            interrupted: false,
        };
        self.0.insert(id, waiter);
    }

    /// It is answered; true if its thread has a signal to take.
    pub fn end(&mut self, id: ReqId) -> bool {
        self.0.remove(&id).is_some_and(|waiter| waiter.interrupted)
    }
}

/// Starts the thread that looks for signals.
pub fn start(ops: &Arc<Ops>, processes: Processes) {
    let ops = ops.clone();
    spawn("signals", move || ops.watch_waiters(&processes));
}

impl Ops {
    fn watch_waiters(&self, processes: &Processes) {
        loop {
            let mut state = lock(&self.state);
            while state.waiters.0.is_empty() {
                state = wait(&self.waiting, state);
            }
            let all = state.waiters.0.iter();
            let all: Vec<_> = all.map(|(id, w)| (*id, w.thread)).collect();
            drop(state);
            let began = Instant::now();
            for (id, thread) in all {
                if processes.has_signal(thread) {
                    self.interrupt(id);
                }
            }
            // Many that wait take no more than a tenth of the time.
            std::thread::sleep(INTERVAL.max(10 * began.elapsed()));
        }
    }

    /// Again and again, as the wait may only be on its way to the log.
    fn interrupt(&self, id: ReqId) {
        let mut state = lock(&self.state);
        let Some(waiter) = state.waiters.0.get_mut(&id) else {
            return;
        };
        let (ino, first) = (waiter.ino, !waiter.interrupted);
        waiter.interrupted = true;
        if first {
            // No longer without a bound, for there may be no quorum.
            if let Some(mut request) = state.requests.remove(id) {
                request.deadline = self.deadline();
                self.set_alarm(&mut state, request.deadline);
                state.requests.put(id, request);
            }
        }
        drop(state);
        self.control.send(&FusedToRaftd::CancelLock { id, ino });
    }
}
