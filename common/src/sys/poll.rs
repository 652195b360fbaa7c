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

//! poll(2), for processes whose loop waits for a few descriptors.  Runs in
//! all processes; the only thing here that is meant to block.

use nix::poll::PollTimeout;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

pub use nix::poll::{PollFd, PollFlags};

/// Waits until one is ready or the time is over; says how many are.  0 also
/// when a signal came: whoever has a limit looks at its clock again.
pub fn poll(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    let timeout = match timeout {
        None => PollTimeout::NONE,
        // Rounded up, or a rest below a millisecond would make callers spin.
        Some(left) => PollTimeout::try_from(left.saturating_add(Duration::from_nanos(999_999)))
            .unwrap_or(PollTimeout::MAX),
    };
    match nix::poll::poll(fds, timeout) {
        Ok(n) => Ok(n.unsigned_abs() as usize),
        Err(nix::Error::EINTR) => Ok(0),
        Err(err) => Err(err.into()),
    }
}

/// Waits for one descriptor; false on timeout.  A hang-up or an error counts
/// as ready: the call that follows reports it.
pub fn wait(fd: BorrowedFd<'_>, events: PollFlags, timeout: Option<Duration>) -> io::Result<bool> {
    let start = Instant::now();
    loop {
        let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
        if poll(&mut [PollFd::new(fd, events)], left)? > 0 {
            return Ok(true);
        }
        // Else it was a signal.
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
    }
}
