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

//! Signals for a poll loop: a handler that only notes the signal and wakes the
//! loop through a pipe.  The parent runs it; a child ignores what is meant for
//! the parent.

use nix::fcntl::OFlag;
use nix::sys::signal::{sigaction, SaFlags, SigAction, SigHandler, SigSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::OnceLock;

pub use nix::sys::signal::Signal;

/// Above every signal that has a name.
const NSIG: usize = 64;

static PENDING: [AtomicBool; NSIG] = [const { AtomicBool::new(false) }; NSIG];
/// The write end, never closed: a handler may run at any time.
static WAKE: OnceLock<OwnedFd> = OnceLock::new();
static WAKE_FD: AtomicI32 = AtomicI32::new(-1);

extern "C" fn handler(signal: libc::c_int) {
    if let Some(pending) = PENDING.get(signal as usize) {
        pending.store(true, Ordering::SeqCst);
    }
    let errno = nix::Error::last_raw();
    // SAFETY: write(2) may be called in a handler; one byte of a constant.  A
    // full pipe is as good: the loop is awake.
    unsafe {
        libc::write(WAKE_FD.load(Ordering::SeqCst), [0u8].as_ptr().cast(), 1);
    }
    nix::Error::set_raw(errno);
}

/// The signals that a process handles in its loop.
#[derive(Debug)]
pub struct Signals {
    wake: OwnedFd,
    signals: Vec<Signal>,
}

impl Signals {
    /// Once per process.
    pub fn new(signals: &[Signal]) -> io::Result<Signals> {
        let (wake, tx) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let tx_fd = tx.as_raw_fd();
        if WAKE.set(tx).is_err() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        WAKE_FD.store(tx_fd, Ordering::SeqCst);
        let handler = SigHandler::Handler(handler);
        let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
        for signal in signals {
            // SAFETY: the handler does only what a handler may do.
            unsafe { sigaction(*signal, &action)? };
        }
        Ok(Signals {
            wake,
            signals: signals.to_vec(),
        })
    }

    /// What came since the last call, each once.
    pub fn take(&mut self) -> Vec<Signal> {
        let mut buf = [0; 64];
        while matches!(nix::unistd::read(&self.wake, &mut buf), Ok(n) if n > 0) {}
        let came = |signal: &&Signal| match PENDING.get(**signal as usize) {
            Some(pending) => pending.swap(false, Ordering::SeqCst),
            None => false,
        };
        self.signals.iter().filter(came).copied().collect()
    }
}

/// Readable when a signal came.
impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

pub fn ignore(signal: Signal) -> io::Result<()> {
    let action = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler is installed.
    unsafe { sigaction(signal, &action)? };
    Ok(())
}
